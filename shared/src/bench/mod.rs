//! What `cargo xtask bench` measures of the models: the same work on every backend, natively and in a browser. The caller
//! brings the clock.

mod clip;
#[cfg(feature = "webgpu")]
mod gpu;
mod llama;
mod random;
mod retrieval;
#[cfg(feature = "webgpu")]
mod step;

#[cfg(feature = "webgpu")]
pub use gpu::{names as gpu_names, run as run_gpu};

pub use llama::{greedy, large_config, q4_k_m_type, seven_b_config};
pub use random::{Random, random_gguf, random_matrix};
use serde::{Deserialize, Serialize};

use crate::{
    backend::Backend,
    error::{Error, Result},
};

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, in parts from the general to the particular: `decode/demo`.
    pub name: String,
    /// The median.
    pub value: f64,
    /// `ms` (less is better) or `tokens/s` and the like (more is better).
    pub unit: String,
    /// Shape and conditions.
    pub note: String,
}

/// Where the work is done.
pub struct Place<B> {
    /// What computes.
    pub backend: B,
    /// Seconds since some moment.
    pub clock: fn() -> f64,
    /// Last part of the rows' names; empty for none.
    pub suffix: &'static str,
    /// Conditions, for the notes.
    pub conditions: String,
    /// How often a measurement is repeated, at most.
    pub patience: usize,
    /// Fewer tokens of large models: where a program plays the GPU, one takes seconds.
    pub short: bool,
    /// There is room for 4 GB of weights, which the memory of wasm does not have.
    pub room: bool,
}

/// The demo bundle's models; made-up ones of their shapes are measured in their stead where they are absent.
#[derive(Debug, Default)]
pub struct Demo {
    /// `llm.gguf`.
    pub llm: Option<Vec<u8>>,
    /// `vision.gguf`.
    pub vision: Option<Vec<u8>>,
}

/// Names of all rows of [`run`], without a suffix.
pub fn names() -> impl Iterator<Item = &'static str> {
    let large = llama::LARGE.iter().map(|of| of.names);
    [clip::DEMO, llama::DEMO, clip::LARGE, retrieval::NAMES].into_iter().chain(large).flatten().copied()
}

/// Measures what `names` choose: everything where there are none, or what contains one of them. Each row goes to `emit`
/// as it comes. A model is loaded only if it is measured.
///
/// # Errors
/// A model that cannot be loaded or computes what is not finite; what `emit` answers.
pub async fn run<B: Backend>(
    place: &Place<B>,
    names: &[String],
    demo: Demo,
    mut emit: impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let mut out = Out { place, names, emit: &mut emit };
    clip::demo(&mut out, demo.vision).await?;
    llama::demo(&mut out, demo.llm).await?;
    clip::large(&mut out).await?;
    retrieval::measure(&mut out).await?;
    for of in llama::LARGE {
        llama::large(&mut out, of).await?;
    }
    Ok(())
}

/// Is `name` chosen? `=` before one of `names` says that it is the whole of it.
pub fn chosen(names: &[String], name: &str) -> bool {
    let chooses = |n: &String| n.strip_prefix('=').map_or_else(|| name.contains(n.as_str()), |whole| name == whole);
    names.is_empty() || names.iter().any(chooses)
}

/// Where rows go.
struct Out<'a, B> {
    place: &'a Place<B>,
    names: &'a [String],
    emit: &'a mut dyn FnMut(Row) -> Result<()>,
}

impl<B> Out<'_, B> {
    fn name(&self, name: &str) -> String {
        format!("{name}{}", self.place.suffix)
    }

    fn wants(&self, name: &str) -> bool {
        chosen(self.names, &self.name(name))
    }

    fn row(&mut self, name: &str, value: f64, unit: &str, note: &str) -> Result<()> {
        let note = format!("{note}; {}", self.place.conditions);
        let name = self.name(name);
        (self.emit)(Row { name, value, unit: unit.to_string(), note })
    }

    /// Median of the seconds that `work` takes, after one run that is not counted.
    async fn median(&self, repetitions: usize, mut work: impl AsyncFnMut() -> Result<()>) -> Result<f64> {
        work().await?;
        let mut seconds = Vec::new();
        for _ in 0..repetitions.clamp(1, self.place.patience.max(1)) {
            let start = (self.place.clock)();
            work().await?;
            seconds.push((self.place.clock)() - start);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}

/// A wrong computation is no faster one. Nor is one that was not done: a kernel that a device passes over leaves zeros.
fn finite(values: &[f32]) -> Result<()> {
    let found = match values.iter().find(|v| !v.is_finite()) {
        None if values.windows(2).any(|two| two[0] != two[1]) => return Ok(()),
        None => values.first(),
        found => found,
    };
    Err(Error::Backend(format!("expected finite values that differ but found {found:?} of {}", values.len())))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::backend::Candle;

    /// A clock whose every look is a second later.
    fn clock() -> f64 {
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        f64::from(LOOKS.fetch_add(1, Ordering::Relaxed))
    }

    fn place() -> Place<Candle> {
        Place {
            backend: Candle::cpu(),
            clock,
            suffix: "/here",
            conditions: "a test".into(),
            patience: 1,
            short: false,
            room: true,
        }
    }

    #[test]
    fn names_choose_and_rows_carry_them() {
        let all: Vec<&str> = names().collect();
        assert!(all.iter().all(|name| all.iter().filter(|n| *n == name).count() == 1), "{all:?}");
        let (place, mut rows) = (place(), Vec::new());
        let measure = async |name: &str, emit: &mut dyn FnMut(Row) -> Result<()>| {
            run(&place, &[name.to_string()], Demo::default(), emit).await
        };
        let mut keep = |row| {
            rows.push(row);
            Ok(())
        };
        pollster::block_on(measure("prefill/demo", &mut keep)).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].name.as_str(), rows[0].unit.as_str()), ("prefill/demo/here", "tokens/s"));
        assert!(rows[0].value > 0.0 && rows[0].note.ends_with("a test"), "{rows:?}");
        pollster::block_on(measure("nothing of that name", &mut |row| panic!("{row:?}"))).unwrap();
    }

    #[test]
    fn a_whole_name_is_that_one() {
        let names = ["=decode/demo".to_string(), "1.1B".to_string()];
        assert!(chosen(&names, "decode/demo") && chosen(&names, "decode/1.1B/Q8_0/webgpu"));
        assert!(!chosen(&names, "decode/demo/webgpu") && !chosen(&names, "decode"));
    }

    #[test]
    fn the_median_leaves_the_first_run_out() {
        let place = Place { patience: 3, ..place() };
        let out = Out { place: &place, names: &[], emit: &mut |_| Ok(()) };
        let mut runs = 0;
        let median = out.median(9, async || {
            runs += 1;
            Ok(())
        });
        let seconds = pollster::block_on(median).unwrap();
        assert!(runs == 4 && seconds >= 1.0, "{runs} {seconds}");
        assert!(pollster::block_on(out.median(2, async || finite(&[1.0, f32::NAN]))).is_err());
        assert!(finite(&[1.0, 2.0]).is_ok() && finite(&[0.0; 3]).is_err() && finite(&[]).is_err());
    }
}

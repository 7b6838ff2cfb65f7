//! What `rscapret-bench` measures: see `cargo xtask bench`.

mod clip;
mod llama;
mod random;
mod training;

use std::{fmt, time::Instant};

use rscapret::{Error, Result, error::Context};
use serde::Serialize;

use crate::tests_dir;

/// One measurement, printed as a line of JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured, in parts from the general to the particular: `decode/demo`.
    pub name: String,
    /// The median.
    pub value: f64,
    /// `ms` (less is better) or `tokens/s` and the like (more is better).
    pub unit: &'static str,
    /// Shape and conditions.
    pub note: String,
}

/// A group of measurements on one model, which is loaded only if one of them is asked for.
struct Case {
    names: &'static [&'static str],
    run: fn(&Wanted) -> Result<Vec<Row>>,
}

const CASES: &[Case] = &[
    Case { names: clip::DEMO, run: clip::demo },
    Case { names: llama::DEMO, run: llama::demo },
    Case { names: llama::Q4_K_M, run: llama::q4_k_m },
    Case { names: llama::Q8_0, run: llama::q8_0 },
    Case { names: training::DEMO, run: training::demo },
];

/// Runs what `names` choose and hands on each row as it comes.
///
/// # Errors
/// A model that cannot be loaded or computes what is not finite; what `emit` answers.
pub fn run(names: &[String], mut emit: impl FnMut(&Row) -> Result<()>) -> Result<()> {
    let wanted = Wanted(names);
    for case in CASES.iter().filter(|case| case.names.iter().any(|name| wanted.has(name))) {
        for row in (case.run)(&wanted)? {
            emit(&row)?;
        }
    }
    Ok(())
}

/// What the command line chose: everything, or what contains one of the names.
struct Wanted<'a>(&'a [String]);

impl Wanted<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|n| name.contains(n.as_str()))
    }

    /// Measures `name`, if it was chosen.
    fn measure(&self, rows: &mut Vec<Row>, name: &str, row: impl FnOnce() -> Result<Row>) -> Result<()> {
        if self.has(name) {
            rows.push(Row { name: name.to_string(), ..row()? });
        }
        Ok(())
    }
}

/// Median of the seconds that `work` takes, after one run that is not counted.
fn median(repetitions: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut seconds = Vec::with_capacity(repetitions);
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// A row that has yet to get its name.
fn row(value: f64, unit: &'static str, note: impl fmt::Display) -> Row {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Row { name: String::new(), value, unit, note: format!("{note}; {} threads at most", threads) }
}

/// A wrong computation is no faster one.
fn finite(values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        None if !values.is_empty() => Ok(()),
        found => Err(Error::Backend(format!("expected finite values but found {found:?} of {}", values.len()))),
    }
}

/// The bytes of a file of the demo bundle, if the bundle is there.
fn demo_file(name: &str) -> Result<Option<Vec<u8>>> {
    let path = tests_dir().join("../models/demo").join(name);
    if !path.exists() {
        return Ok(None);
    }
    on_disk(std::fs::read(&path), path.display()).map(Some)
}

fn on_disk<T>(result: std::io::Result<T>, path: impl fmt::Display) -> Result<T> {
    result.map_err(|e| Error::Io(e.to_string())).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_and_rows_carry_what_xtask_reads() {
        let names: Vec<&str> = CASES.iter().flat_map(|c| c.names).copied().collect();
        assert!(names.iter().all(|name| names.iter().filter(|n| *n == name).count() == 1), "{names:?}");
        let mut rows = Vec::new();
        let chosen = ["prefill/demo".to_string()];
        run(&chosen, |row| {
            rows.push(serde_json::to_value(row).unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((&rows[0]["name"], &rows[0]["unit"]), (&"prefill/demo".into(), &"tokens/s".into()));
        assert!(rows[0]["value"].as_f64().unwrap() > 0.0 && rows[0]["note"].is_string(), "{rows:?}");
        run(&["nothing of that name".to_string()], |row| panic!("{row:?}")).unwrap();
    }

    #[test]
    fn the_median_leaves_the_first_run_out() {
        let mut runs = 0;
        let seconds = median(3, || {
            runs += 1;
            std::thread::sleep(std::time::Duration::from_millis(if runs == 1 { 200 } else { 1 }));
            Ok(())
        })
        .unwrap();
        assert!(runs == 4 && (0.001..0.2).contains(&seconds), "{runs} {seconds}");
        assert!(median(2, || finite(&[1.0, f32::NAN])).is_err());
    }
}

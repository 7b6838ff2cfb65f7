//! Where the time of a token goes: what each kernel of a replayed step takes by the device's own clock.

use std::collections::BTreeMap;

use super::{
    Out, finite,
    llama::{random, seven_b_config, small_config},
};
use crate::{
    backend::{Backend, WebGpu},
    error::{Error, Result},
    llama::{KvCache, LlamaConfig},
    weights::Dtype,
};

pub(super) const NAMES: [&str; 2] = ["step/110M/Q4_0", "step/7B/Q4_0"];
/// Tokens that were seen before.
const SEEN: usize = 64;
/// Steps that are measured after the one that is recorded.
const STEPS: usize = 9;

/// Measures what is wanted of [`NAMES`]; nothing on a device without such a clock.
pub(super) async fn measure(out: &mut Out<'_, WebGpu>) -> Result<()> {
    for (name, config, huge) in [(NAMES[0], small_config(), false), (NAMES[1], seven_b_config(), true)] {
        let left_out = huge && (out.place.short || !out.place.room);
        if !left_out && out.wants(name) {
            let step = of_model(&out.place.backend, &config).await?;
            if !step.is_empty() {
                let all: f64 = step.iter().map(|(_, time)| time).sum();
                out.row(name, all / step.len() as f64, "us a dispatch", &told(&step))?;
            }
        }
    }
    Ok(())
}

/// The step of median time: each kernel and its microseconds.
async fn of_model(gpu: &WebGpu, config: &LlamaConfig) -> Result<Vec<(&'static str, f64)>> {
    let (llama, _) = random(gpu, config, |_| Dtype::Q4_0).await?;
    let mut cache = KvCache::new(gpu, config, 1, config.max_position_embeddings)?;
    cache.assume(SEEN);
    let mask = gpu.upload(&vec![0.0; config.vocab_size], &[config.vocab_size])?;
    let mut logits = gpu.upload(&vec![1.0; config.vocab_size], &[1, config.vocab_size])?;
    let nothing = || Error::Backend("expected ids on the device but found none".into());
    let mut chosen = gpu.choose(&logits, &mask, None)?.ok_or_else(nothing)?;
    let mut steps = Vec::new();
    for _ in 0..=STEPS {
        let ((after, next), kernels) = gpu
            .timed(|| {
                let logits = llama.decode(gpu, &chosen.ids, &mut cache)?;
                let next = gpu.choose(&logits, &mask, Some(&chosen.ids))?.ok_or_else(nothing)?;
                Ok((logits, next))
            })
            .await?;
        (logits, chosen) = (after, next);
        steps.push(kernels);
    }
    finite(&gpu.read(&logits).await?)?;
    // The first one compiles and is recorded.
    steps.remove(0);
    let total = |step: &Vec<(&str, f64)>| step.iter().map(|(_, time)| time).sum::<f64>();
    steps.sort_by(|a, b| total(a).total_cmp(&total(b)));
    Ok(steps.swap_remove(STEPS / 2))
}

/// The kernels by their names, those first that take the most.
fn told(step: &[(&'static str, f64)]) -> String {
    let mut by_name: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for (name, time) in step {
        let (count, all) = by_name.entry(name).or_default();
        (*count, *all) = (*count + 1, *all + time);
    }
    let mut kernels: Vec<_> = by_name.into_iter().collect();
    kernels.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
    let each = |(name, (count, all)): &(&str, (usize, f64))| format!("{name} {count} x {:.1}", all / *count as f64);
    let all: f64 = step.iter().map(|(_, time)| time).sum();
    let kernels: Vec<String> = kernels.iter().map(each).collect();
    format!("{} dispatches in {all:.0} us after {SEEN} tokens: {}", step.len(), kernels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn kernels_are_told_by_name_and_those_first_that_take_the_most() {
        let told = told(&[("add", 1.0), ("matvec", 4.0), ("add", 2.0)]);
        assert_eq!(told, "3 dispatches in 7 us after 64 tokens: matvec 1 x 4.0, add 2 x 1.5");
    }
}

//! What every training stage does around its step: batches, workers, progress, checkpoints, an orderly stop.

mod batch;
mod workers;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

pub use batch::{draw, fills_shares, step_rng};
use candle_core::{Tensor, backprop::GradStore};
use indicatif::ProgressBar;
use rscapret::{Context, Error, Result, backend::candle::Compute};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Value, json};
pub use workers::{Places, Workers, pool};

use crate::{
    optim::{Gradients, Optim, Schedule},
    parallel::{Group, same_weights},
    progress,
    report::Sample,
    run_dir::RunDir,
    vars::Vars,
};

/// `[training]` of a stage's TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Of everything random.
    pub seed: u64,
    /// Steps in all.
    pub steps: u64,
    /// Captions, or pairs of image and caption, of a step; where a loss contrasts them, all are one another's negatives.
    #[serde(default = "fromage_batch")]
    pub batch: usize,
    /// Threads of a process that share a batch. Their number, times that of the processes, shows in the last bits of the
    /// result, their speed does not. A GPU has one.
    pub workers: usize,
    /// What activations and frozen weights are: f32, or bf16; what is trained, its gradients, losses and statistics are f32.
    #[serde(default)]
    pub compute: Compute,
    /// Steps between validations.
    #[serde(deserialize_with = "one_or_more")]
    pub validate_every: u64,
    /// Validations without a better score after which training ends early; absent, it never does.
    pub patience: Option<u64>,
    /// Seconds between checkpoints: what a kill may lose.
    #[serde(default = "two_minutes")]
    pub checkpoint_seconds: f64,
}

fn fromage_batch() -> usize {
    180
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<u64, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(D::Error::custom("expected 1 step or more but found 0")),
        steps => Ok(steps),
    }
}

fn two_minutes() -> f64 {
    120.0
}

/// The variables' gradients out of a backward pass; a variable that the loss did not touch has none.
///
/// # Errors
/// What the device answers.
pub fn gradients(vars: &Vars, store: &GradStore) -> Result<Gradients> {
    let mut out = Gradients::new();
    for (name, var) in vars {
        if let Some(gradient) = store.get(var.as_tensor()) {
            // Detached: it would keep the graph that it came from.
            out.insert(name.clone(), gradient.contiguous()?.detach());
        }
    }
    Ok(out)
}

/// Adds the workers' gradients in their order.
///
/// # Errors
/// What the device answers.
pub fn sum(parts: impl IntoIterator<Item = Gradients>) -> Result<Gradients> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (name, gradient) in part {
            let sum = match total.get(&name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            total.insert(name, sum);
        }
    }
    Ok(total)
}

/// The gradient of a variable of one number, where there is such a variable.
///
/// # Errors
/// What the device answers.
pub fn insert_number(gradients: &mut Gradients, vars: &Vars, name: &str, value: f32) -> Result<()> {
    if let Some(var) = vars.get(name) {
        gradients.insert(name.to_string(), Tensor::full(value, var.shape(), var.device())?);
    }
    Ok(())
}

/// What a validation found.
#[derive(Debug, Default)]
pub struct Validation {
    /// To log.
    pub line: Value,
    /// What the best model is chosen by, more is better; `None` where there was nothing to judge by, and the last stays.
    pub score: Option<f64>,
    /// Some captions, for people to look at; the loop puts in the step.
    pub samples: Vec<Sample>,
}

/// How a stage trains.
pub struct Loop<'a> {
    /// Where it keeps its things.
    pub run: &'a RunDir,
    /// What it trains.
    pub vars: &'a Vars,
    /// Length and rhythm.
    pub config: &'a TrainingConfig,
    /// Of the learning rates.
    pub schedule: Schedule,
    /// Who shares each batch.
    pub workers: &'a Workers<'a>,
}

/// What the first process decides after a step, for all.
#[derive(Clone, Copy)]
struct Plan {
    stopping: bool,
    last: bool,
    save: bool,
}

impl Plan {
    fn agree(self, group: &dyn Group) -> Result<Self> {
        let own = [self.stopping, self.last, self.save].map(u8::from);
        match group.broadcast(&own)?[..] {
            [stopping, last, save] => Ok(Plan { stopping: stopping == 1, last: last == 1, save: save == 1 }),
            ref found => Err(Error::Malformed(format!("expected a decision of 3 bytes but found {}", found.len()))),
        }
    }
}

impl Loop<'_> {
    /// Trains from the checkpoint (or the start) to the end, and leaves the variables as they were at the best
    /// validation. `step` gives a step's gradients and what to log of it. In a group all processes call it; `validate`, too,
    /// is called in all, where it changes the variables alike, and only the first's finding counts.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after Ctrl-C, with a checkpoint saved; whatever a step answers, the last checkpoint intact.
    pub fn train(
        &self,
        optim: &mut Optim,
        mut step: impl FnMut(u64) -> Result<(Gradients, Value)>,
        mut validate: impl FnMut() -> Result<Validation>,
    ) -> Result<()> {
        let (config, group) = (self.config, self.workers.group());
        let first = self.run.load(self.vars, optim)?;
        self.run.rewind(first)?;
        let mut best = self.run.best()?;
        // All have read by then what the first will write anew.
        same_weights(group, self.vars, first)?;
        let stop = stop_flag()?;
        // The optimiser steps several variables at once.
        let pool = pool(config.workers.max(1))?;
        let bar = match group.rank() {
            0 => progress::bar(config.steps as usize, ""),
            _ => ProgressBar::hidden(),
        };
        bar.set_position(first);
        let (mut saved, mut begun) = (Instant::now(), Instant::now());
        let mut since = 0;
        let end = if self.patience_is_over(best, first) { first } else { config.steps };
        for done in first + 1..=end {
            let factor = self.schedule.factor(done - 1, config.steps);
            let (gradients, mut line) = step(done - 1)?;
            let norm = pool.install(|| optim.step(self.vars, &gradients, factor)).at(format!("step {done}"))?;
            since += 1;
            bar.inc(1);
            if done % 10 == 0 || done == config.steps {
                if let Some(line) = line.as_object_mut() {
                    line.insert("step".into(), json!(done));
                    line.insert("gradient_norm".into(), json!(norm));
                    line.insert("rate".into(), json!(factor));
                    line.insert("learning_rate".into(), json!(optim.lr() * factor));
                    line.insert("seconds_per_step".into(), json!(begun.elapsed().as_secs_f64() / f64::from(since)));
                }
                (begun, since) = (Instant::now(), 0);
                bar.set_message(losses(&line));
                self.run.log(&line)?;
            }
            if done % config.validate_every == 0 || done == config.steps {
                let Validation { line, score, samples } = validate()?;
                bar.println(format!("step {done}: {line}"));
                self.run.log(&json!({ "step": done, "validation": line, "score": score }))?;
                for sample in samples {
                    self.run.log_sample(&Sample { step: done, ..sample })?;
                }
                let better = |score: &f64| score.is_finite() && best.is_none_or(|(_, best)| *score > best);
                if let Some(score) = score.filter(better) {
                    self.run.save_best(done, score, self.vars)?;
                    best = Some((done, score));
                }
                (begun, since) = (Instant::now(), 0);
            }
            let stopping = stop.load(Ordering::Relaxed);
            let last = done == config.steps || self.patience_is_over(best, done);
            let save = stopping || last || saved.elapsed().as_secs_f64() >= config.checkpoint_seconds;
            let Plan { stopping, last, save } = Plan { stopping, last, save }.agree(group)?;
            if save {
                same_weights(group, self.vars, done)?;
                self.run.save(done, self.vars, optim)?;
                saved = Instant::now();
            }
            if stopping && !last {
                bar.abandon_with_message("stopped; continue with --resume");
                return Err(Error::Cancelled);
            }
            if last {
                break;
            }
        }
        bar.finish();
        self.run.load_best(self.vars)
    }

    /// Whether, after `done` steps, as many validations as the configuration's patience brought nothing better.
    fn patience_is_over(&self, best: Option<(u64, f64)>, done: u64) -> bool {
        let (Some(patience), Some((at, _))) = (self.config.patience, best) else { return false };
        done.saturating_sub(at) >= patience * self.config.validate_every
    }
}

/// A step's loss and the parts of it, for the bar.
fn losses(line: &Value) -> String {
    let part = |name: &&str| Some(format!("{name} {:.4}", line.get(*name)?.as_f64()?));
    ["loss", "caption", "contrast", "ret"].iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

/// Set by Ctrl-C (and SIGTERM); one handler serves the whole program.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    static FLAG: OnceLock<std::result::Result<Arc<AtomicBool>, String>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let handle = flag.clone();
        let set = ctrlc::set_handler(move || handle.store(true, Ordering::Relaxed));
        set.map(|()| flag).map_err(|e| e.to_string())
    });
    flag.clone().map_err(Error::Io)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::optim::OptimConfig;

    /// What CUDA says is put into words where it is heard; here, that a step which fails so costs nothing that was saved.
    #[test]
    fn a_gpu_that_is_full_leaves_the_last_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainingConfig {
            seed: 1,
            steps: 6,
            batch: 1,
            workers: 1,
            compute: Compute::F32,
            validate_every: 100,
            patience: None,
            checkpoint_seconds: 0.0,
        };
        let schedule = Schedule { warmup: 0, decay: 0.0, ..Schedule::default() };
        let optim = OptimConfig { lr: 0.1, ..OptimConfig::default() };
        let train = |name: &str, resume: bool, full_at: u64| {
            let run = RunDir::open(&folder.path().join(name), &config, resume)?;
            let vars = Vars::from([("w".to_string(), Var::new(&[1f32, 2.0], &Device::Cpu)?)]);
            let mut optim = Optim::new(&optim, &vars)?;
            let gradient = vars["w"].as_detached_tensor();
            let workers = Workers::new(1, &Device::Cpu)?;
            Loop { run: &run, vars: &vars, config: &config, schedule, workers: &workers }.train(
                &mut optim,
                |step| {
                    if step == full_at {
                        let text = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".to_string();
                        return Err(candle_core::Error::Msg(text).into());
                    }
                    Ok((Gradients::from([("w".to_string(), gradient.copy()?)]), json!({ "loss": 1.0 })))
                },
                || Ok(Validation::default()),
            )
        };
        let checkpoint = |name: &str| std::fs::read(folder.path().join(name).join("checkpoint.safetensors")).unwrap();
        train("whole", false, 100).unwrap();
        let error = train("run", false, 3).unwrap_err().to_string();
        assert!(error.contains("expected enough memory on the GPU but found less\ntake a quantised"), "{error}");
        let before = checkpoint("run");
        train("run", true, 3).unwrap_err();
        assert!(checkpoint("run") == before && before != checkpoint("whole"));
        train("run", true, 100).unwrap();
        assert!(checkpoint("run") == checkpoint("whole"));
    }

    #[test]
    fn gradients_are_summed_by_name() {
        let of = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let parts = [[("a", of(&[1.0, 2.0])), ("b", of(&[3.0]))], [("a", of(&[0.5, 0.5])), ("c", of(&[4.0]))]];
        let parts: [Gradients; 2] = parts.map(|part| part.map(|(name, gradient)| (name.to_string(), gradient)).into());
        let total = sum(parts).unwrap();
        let found: Vec<(&str, Vec<f32>)> =
            total.iter().map(|(name, g)| (name.as_str(), g.to_vec1().unwrap())).collect();
        assert_eq!(found, [("a", vec![1.5, 2.5]), ("b", vec![3.0]), ("c", vec![4.0])]);
    }

    #[test]
    fn the_bar_tells_the_parts_of_the_loss() {
        let line = json!({ "contrast": 0.25, "loss": 1.5, "caption": 1.0, "batch_accuracy": 0.5 });
        assert_eq!(losses(&line), "loss 1.5000, caption 1.0000, contrast 0.2500");
        assert_eq!(losses(&json!({ "loss": 2.0 })), "loss 2.0000");
    }
}

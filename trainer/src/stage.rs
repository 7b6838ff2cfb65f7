//! What every training stage does around its step: workers, progress, checkpoints, an orderly stop.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use candle_core::{Device, Tensor, backprop::GradStore};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rscapret::{Context, Error, Result, backend::candle::Compute};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    optim::{Gradients, Optim, Schedule},
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
    pub batch: usize,
    /// Threads that share a batch. Their number shows in the last bits of the result, their speed does not. A GPU has one.
    pub workers: usize,
    /// What activations and frozen weights are: f32, or bf16; what is trained, its gradients, losses and statistics are f32.
    #[serde(default)]
    pub compute: Compute,
    /// Steps between validations.
    pub validate_every: u64,
    /// Validations without a better score after which training ends early; absent, it never does.
    pub patience: Option<u64>,
    /// Seconds between checkpoints: what a kill may lose.
    #[serde(default = "two_minutes")]
    pub checkpoint_seconds: f64,
}

fn two_minutes() -> f64 {
    120.0
}

/// Those that each work on a share of the batch. Shares have a fixed order, so their number, but never their speed,
/// shows in the result.
pub struct Workers(Vec<ThreadPool>);

impl Workers {
    /// On the CPU `count` workers of one thread each. On a GPU one, for it is one stream of work; its threads, as many as
    /// there are cores, read the images.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(count: usize, device: &Device) -> Result<Self> {
        let (count, threads) = if device.is_cpu() { (count.max(1), 1) } else { (1, cores()) };
        Ok(Workers((0..count).map(|_| pool(threads)).collect::<Result<_>>()?))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A batch's items, dealt out by turns.
    pub fn deal<T: Clone>(&self, batch: &[T]) -> Vec<Vec<T>> {
        (0..self.count()).map(|at| batch.iter().skip(at).step_by(self.count()).cloned().collect()).collect()
    }

    /// Runs `f` on every share, one worker each; results in the shares' order.
    ///
    /// # Errors
    /// The first share's that failed.
    pub fn run<T: Send, R: Send>(&self, shares: Vec<T>, f: impl Fn(usize, T) -> Result<R> + Sync) -> Result<Vec<R>> {
        let f = &f;
        std::thread::scope(|scope| {
            let handles: Vec<_> = shares
                .into_iter()
                .enumerate()
                .map(|(i, share)| {
                    let pool = &self.0[i % self.0.len()];
                    scope.spawn(move || pool.install(|| f(i, share)))
                })
                .collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| Err(Error::Backend("a worker died".into()))))
                .collect()
        })
    }
}

fn pool(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::Backend(e.to_string()))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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

/// The random numbers of one step, whatever came before: a resumed run draws the same.
pub fn step_rng(seed: u64, step: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step << 16 | stream);
    rng
}

/// A batch from weighted sources: of each its share of different images, the last filling up, and of each image a random
/// one of its `captions`.
pub fn draw<'a, P, C>(
    rng: &mut impl Rng,
    sources: &'a [(f64, Vec<P>)],
    batch: usize,
    captions: impl Fn(&'a P) -> &'a [C],
) -> Vec<(&'a P, &'a C)> {
    let mut drawn = Vec::with_capacity(batch);
    let whole: f64 = sources.iter().map(|(weight, _)| weight).sum();
    for (i, (weight, pairs)) in sources.iter().enumerate() {
        let last = i + 1 == sources.len();
        let count = if last { batch - drawn.len() } else { (batch as f64 * weight / whole) as usize };
        for at in sample(rng, pairs.len(), count.min(pairs.len())) {
            let captions = captions(&pairs[at]);
            drawn.push((&pairs[at], &captions[rng.random_range(0..captions.len())]));
        }
    }
    drawn
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
}

impl Loop<'_> {
    /// Trains from the checkpoint (or the start) to the end, and leaves the variables as they were at the best
    /// validation. `step` gives a step's gradients and what to log of it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after Ctrl-C, with a checkpoint saved; whatever a step answers, the last checkpoint intact.
    pub fn train(
        &self,
        optim: &mut Optim,
        mut step: impl FnMut(u64) -> Result<(Gradients, Value)>,
        mut validate: impl FnMut() -> Result<Validation>,
    ) -> Result<()> {
        let config = self.config;
        let first = self.run.load(self.vars, optim)?;
        self.run.rewind(first)?;
        let mut best = self.run.best()?;
        let stop = stop_flag()?;
        // The optimiser steps several variables at once.
        let pool = pool(config.workers.max(1))?;
        let bar = ProgressBar::new(config.steps).with_style(style());
        bar.set_position(first);
        let (mut saved, mut begun) = (Instant::now(), Instant::now());
        let mut since = 0;
        for done in first + 1..=config.steps {
            if self.patience_is_over(best, done - 1) {
                break;
            }
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
                    line.insert("seconds_per_step".into(), json!(begun.elapsed().as_secs_f64() / f64::from(since)));
                }
                (begun, since) = (Instant::now(), 0);
                bar.set_message(
                    line.get("loss").map(|l| format!("loss {:.4}", l.as_f64().unwrap_or(f64::NAN))).unwrap_or_default(),
                );
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
            if stopping || last || saved.elapsed().as_secs_f64() >= config.checkpoint_seconds {
                self.run.save(done, self.vars, optim)?;
                saved = Instant::now();
            }
            if stopping && !last {
                bar.abandon_with_message("stopped; continue with --resume");
                return Err(Error::Cancelled);
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

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} left {eta} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Set by Ctrl-C (and SIGTERM); one handler serves the whole program.
fn stop_flag() -> Result<Arc<AtomicBool>> {
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
    use candle_core::Var;

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
            Loop { run: &run, vars: &vars, config: &config, schedule }.train(
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
        assert!(error.contains("expected enough memory on the GPU but found less\nlower `micro_batch`"), "{error}");
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
}

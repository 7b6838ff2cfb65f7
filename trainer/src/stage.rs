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
    parallel::{Alone, Group, same_weights},
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

fn two_minutes() -> f64 {
    120.0
}

/// Threads that each work on a share of the batch, in one process or in as many each of a group. Shares have a fixed order,
/// so their number, but never their speed, shows in the result.
pub struct Workers<'g> {
    pools: Vec<ThreadPool>,
    group: &'g dyn Group,
}

impl Workers<'static> {
    /// Those of one process alone; see [`Workers::in_group`].
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(count: usize, device: &Device) -> Result<Self> {
        Workers::in_group(count, device, &Alone)
    }
}

impl<'g> Workers<'g> {
    /// On the CPU `count` workers of one thread each, here and in each other process of the group. On a GPU one, for it is
    /// one stream of work; its threads, as many as there are cores, read the images.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn in_group(count: usize, device: &Device, group: &'g dyn Group) -> Result<Self> {
        let (count, threads) = if device.is_cpu() { (count.max(1), 1) } else { (1, cores()) };
        Ok(Workers { pools: (0..count).map(|_| pool(threads)).collect::<Result<_>>()?, group })
    }

    /// The processes that they belong to.
    pub fn group(&self) -> &'g dyn Group {
        self.group
    }

    /// How many there are in all processes.
    pub fn count(&self) -> usize {
        self.pools.len() * self.group.world()
    }

    /// Which of all is the first one here.
    pub fn first(&self) -> usize {
        self.pools.len() * self.group.rank()
    }

    /// Of the shares of all workers, those of the ones here.
    pub fn own<T>(&self, shares: impl IntoIterator<Item = T>) -> Vec<T> {
        shares.into_iter().skip(self.first()).take(self.pools.len()).collect()
    }

    /// A batch's items, dealt out by turns to all workers.
    pub fn deal<T: Clone>(&self, batch: &[T]) -> Vec<Vec<T>> {
        (0..self.count()).map(|at| batch.iter().skip(at).step_by(self.count()).cloned().collect()).collect()
    }

    /// Runs `f` on every share, one worker here each; results in the shares' order.
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
                    let pool = &self.pools[i % self.pools.len()];
                    scope.spawn(move || pool.install(|| f(i, share)))
                })
                .collect();
            handles
                .into_iter()
                .map(|handle| {
                    handle.join().unwrap_or_else(|_| {
                        Err(Error::Backend(
                            "expected every worker to finish but found one that panicked, as it says above".into(),
                        ))
                    })
                })
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
    for (count, (_, pairs)) in shares(sources, batch).into_iter().zip(sources) {
        for at in sample(rng, pairs.len(), count.min(pairs.len())) {
            let captions = captions(&pairs[at]);
            drawn.push((&pairs[at], &captions[rng.random_range(0..captions.len())]));
        }
    }
    drawn
}

/// How many images of each source a batch has.
fn shares<P>(sources: &[(f64, Vec<P>)], batch: usize) -> Vec<usize> {
    let whole: f64 = sources.iter().map(|(weight, _)| weight).sum();
    let mut left = batch;
    let share = |(i, (weight, _)): (usize, &(f64, Vec<P>))| {
        let count = if i + 1 == sources.len() { left } else { (batch as f64 * weight / whole) as usize };
        left -= count;
        count
    };
    sources.iter().enumerate().map(share).collect()
}

/// Whether every source has as many different images as its share of a batch: [`draw`] would make smaller batches of less.
///
/// # Errors
/// [`Error::Config`] with the first of the `names` whose source has not.
pub fn fills_shares<'n, P>(
    sources: &[(f64, Vec<P>)],
    names: impl IntoIterator<Item = &'n str>,
    batch: usize,
) -> Result<()> {
    for ((share, (_, pairs)), name) in shares(sources, batch).into_iter().zip(sources).zip(names) {
        if pairs.len() < share {
            return Err(Error::Config(format!(
                "expected `{name}` to have {share} images to train on, its share of a batch of {batch}, but found {}\n\
                 lower `batch`, or the `weight` of that dataset",
                pairs.len()
            )));
        }
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
            0 => ProgressBar::new(config.steps).with_style(style()),
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

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} left {eta} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
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

    /// Sources of images that are their own only caption: the first digit tells the source.
    fn sources(parts: &[(f64, usize)]) -> Vec<(f64, Vec<[usize; 1]>)> {
        let images = |(at, &(weight, count)): (usize, &(f64, usize))| {
            (weight, (0..count).map(|image| [1000 * at + image]).collect())
        };
        parts.iter().enumerate().map(images).collect()
    }

    #[test]
    fn a_batch_has_each_sources_share_of_different_images() {
        let sources = sources(&[(1.68, 100), (8.73, 300), (0.5, 40), (25.2, 900)]);
        let mut seen = [0; 4];
        for step in 0..200 {
            let drawn = draw(&mut step_rng(1, step, 0), &sources, 256, |image| image);
            let of = |source: usize| drawn.iter().filter(|(_, caption)| **caption / 1000 == source).count();
            // 256 shared by weights, rounded down; the last fills up.
            assert_eq!([of(0), of(1), of(2), of(3)], [11, 61, 3, 181]);
            let mut images: Vec<usize> = drawn.iter().map(|(_, caption)| **caption).collect();
            images.sort_unstable();
            images.dedup();
            assert_eq!(images.len(), 256, "an image stands twice in a batch");
            images.iter().for_each(|image| seen[image / 1000] |= 1u64 << (image % 1000 % 40));
            let again = draw(&mut step_rng(1, step, 0), &sources, 256, |image| image);
            assert_eq!(drawn, again);
        }
        // All of the smallest one come up.
        assert_eq!(seen[2].count_ones(), 40);
    }

    #[test]
    fn a_source_that_cannot_fill_its_share_is_told() {
        let names = ["UCM", "RSICD"];
        let fills = |parts: &[(f64, usize)], batch| fills_shares(&sources(parts), names, batch);
        fills(&[(1.0, 8), (1.0, 8)], 16).unwrap();
        fills(&[(0.01, 0), (1.0, 16)], 16).unwrap();
        let error = fills(&[(1.0, 8), (1.0, 8)], 17).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "expected `RSICD` to have 9 images to train on, its share of a batch of 17, but found 8\n"
            )
        );
        assert!(fills(&[(3.0, 11), (1.0, 90)], 16).unwrap_err().to_string().contains("`UCM` to have 12 images"));
    }

    #[test]
    fn the_bar_tells_the_parts_of_the_loss() {
        let line = json!({ "contrast": 0.25, "loss": 1.5, "caption": 1.0, "batch_accuracy": 0.5 });
        assert_eq!(losses(&line), "loss 1.5000, caption 1.0000, contrast 0.2500");
        assert_eq!(losses(&json!({ "loss": 2.0 })), "loss 2.0000");
    }
}

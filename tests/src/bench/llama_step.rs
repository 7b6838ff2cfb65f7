//! One step of `rscapret train` at the shapes of LLaMA-2-7B, in bf16, on an NVIDIA GPU; and the same step of the same weights in
//! PyTorch with transformers (`tests/golden/make_training_speed.py`) on the same card, in the same run.
//!
//! ```text
//! cargo run --release -p rscapret-tests --features cuda --bin rscapret-bench -- training/llama-7b-step
//! ```
//!
//! The Python that has torch and transformers is `$PYTHON`, or else `python3`. `$RSCAPRET_STEP` holds other shapes, and another
//! device, as JSON: `{"device": "cpu", "num_hidden_layers": 2, "hidden_size": 64, ...}`. Each program runs in a process of its own,
//! and the card's memory is watched from outside, so that both are measured alike.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread::JoinHandle,
};

use rscapret::{
    Error, Result,
    bench::{Row, chosen},
};
use rscapret_trainer::cli::device::cuda;
use serde_json::Value;

use self::shape::Shape;
use super::{in_child, on_disk};
use crate::tests_dir;

mod ours;
mod shape;

pub use ours::child;

const NAME: &str = "training/llama-7b-step";
/// What this program's own child process is asked for.
pub const KIND: &str = "llama-7b-step";
/// Losses of the two may differ by this share in bf16: they round at different places.
const NARROW: f64 = 2e-2;
/// And in f32.
const WIDE: f64 = 1e-4;

/// What one of the two found.
struct Found {
    /// Of a step, the median.
    seconds: f64,
    /// Before each step.
    losses: Vec<f64>,
    /// Most memory in use: of the card, or of the process on the CPU; MiB.
    peak: Option<f64>,
    about: String,
}

/// Names of all rows.
pub(super) fn names() -> impl Iterator<Item = String> {
    let parts = ["ours", "ours/peak", "micro", "micro/peak", "pytorch", "pytorch/peak", "ratio"];
    parts.into_iter().map(|part| format!("{NAME}/{part}"))
}

/// Rows of both, and their ratio; none where there is no such GPU and no other shapes are asked for.
pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let asked = std::env::var("RSCAPRET_STEP").ok();
    if !self::names().any(|name| chosen(names, &name)) || asked.is_none() && cuda(0).is_err() {
        return Ok(());
    }
    let shape = Shape::new(asked.as_deref())?;
    let ours = measured(&shape, || in_child(&[KIND, &shape.to_json()?]))?;
    report("ours", &shape, &ours, emit)?;
    // As little memory as a workstation's card has.
    let small = Shape { micro_batch: Some(shape.micro_batch.unwrap_or(shape.batch.div_ceil(8))), ..shape.clone() };
    report("micro", &small, &measured(&small, || in_child(&[KIND, &small.to_json()?]))?, emit)?;
    let theirs = match measured(&shape, || pytorch(&shape)) {
        Ok(theirs) => theirs,
        Err(error) => {
            eprintln!("{NAME}/pytorch is left out: {error}");
            return Ok(());
        }
    };
    report("pytorch", &shape, &theirs, emit)?;
    same(&shape, &ours, &theirs)?;
    let note = "samples/s of ours by PyTorch's, one card, one run; more is better".to_string();
    let value = theirs.seconds / ours.seconds;
    emit(Row { name: format!("{NAME}/ratio"), value, unit: "x".to_string(), note })
}

fn report(what: &str, shape: &Shape, found: &Found, emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let note = format!("{shape}; {}; first loss {:.5}", found.about, found.losses.first().unwrap_or(&f64::NAN));
    let row = |name: String, value: f64, unit: &str| Row { name, value, unit: unit.to_string(), note: note.clone() };
    emit(row(format!("{NAME}/{what}"), shape.batch as f64 / found.seconds, "samples/s"))?;
    if let Some(peak) = found.peak {
        emit(row(format!("{NAME}/{what}/peak"), peak, "MiB"))?;
    }
    Ok(())
}

/// That both did the same work.
fn same(shape: &Shape, ours: &Found, theirs: &Found) -> Result<()> {
    let bound = if shape.is_narrow() { NARROW } else { WIDE };
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= bound * b.abs();
    if ours.losses.len() == theirs.losses.len() && ours.losses.iter().zip(&theirs.losses).all(near) {
        return Ok(());
    }
    Err(Error::Backend(format!(
        "{NAME}: expected the losses {:?} of PyTorch but found {:?}",
        theirs.losses, ours.losses
    )))
}

/// Runs one of the programs, which answers with `seconds`, `losses`, `peak` of a process, and `about`.
fn measured(shape: &Shape, run: impl FnOnce() -> Result<Value>) -> Result<Found> {
    let watch = if shape.is_cpu() { None } else { Watch::new() };
    let answer = run()?;
    let card = watch.and_then(Watch::most);
    let number = |value: &Value| value.as_f64();
    let malformed = || Error::Malformed(format!("expected a measurement but found {answer}"));
    let losses: Option<Vec<f64>> = answer["losses"].as_array().map(|all| all.iter().filter_map(number).collect());
    Ok(Found {
        seconds: number(&answer["seconds"]).ok_or_else(malformed)?,
        losses: losses.filter(|losses| losses.iter().all(|loss| loss.is_finite())).ok_or_else(malformed)?,
        peak: if shape.is_cpu() { number(&answer["peak"]) } else { card },
        about: answer["about"].as_str().unwrap_or_default().to_string(),
    })
}

fn pytorch(shape: &Shape) -> Result<Value> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_string());
    let script = tests_dir().join("golden/make_training_speed.py");
    let output = Command::new(&python).arg(&script).arg(shape.to_json()?).stderr(Stdio::inherit()).output();
    let output = on_disk(output, &python)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    rows.next_back().filter(|_| output.status.success()).ok_or_else(|| {
        Error::Io(format!(
            "{}: expected rows from {python} but found {}\npip install torch transformers, and name that Python in $PYTHON",
            script.display(),
            output.status
        ))
    })
}

/// The memory in use on the first card, looked at fifty times a second.
struct Watch {
    child: Child,
    most: JoinHandle<Option<f64>>,
}

impl Watch {
    /// `None` where there is no `nvidia-smi`.
    fn new() -> Option<Self> {
        let arguments = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=20"];
        let mut child = Command::new("nvidia-smi").args(arguments).stdout(Stdio::piped()).spawn().ok()?;
        let lines = BufReader::new(child.stdout.take()?).lines().map_while(|line| line.ok());
        let most = std::thread::spawn(move || {
            lines
                .filter_map(|line| line.trim().parse().ok())
                .fold(None, |most: Option<f64>, now| Some(most.map_or(now, |most| most.max(now))))
        });
        Some(Watch { child, most })
    }

    fn most(mut self) -> Option<f64> {
        self.child.kill().ok()?;
        self.child.wait().ok()?;
        self.most.join().ok()?
    }
}

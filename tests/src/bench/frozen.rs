//! What a frozen linear layer saves: one training step of a Llama whose only variable is its input, with the frozen
//! layer and with Candle's way, which computes and keeps the gradient of every weight. Each is measured in a process of
//! its own, for a process has one peak of memory.

use std::{path::Path, time::Instant};

use candle_core::{Tensor, Var};
use rscapret::{
    Backend, Candle, Context, Error, Result,
    backend::{RopeLayout, candle::Matrix},
    bench::{Random, Row, chosen},
    llama::{Llama, LlamaConfig, RopeScaling},
    nn::Weights,
    weights::{Dtype, quant::dequantize},
};
use rscapret_trainer::loss::cross_entropy;
use serde::{Deserialize, Serialize};

use super::{in_child, threads};

/// Kinds of linear layers, as the rows name them. Candle has no gradient through blocks at all, so that its way is
/// measured once.
const KINDS: [&str; 4] = ["frozen/f32", "frozen/Q8_0", "frozen/Q4_K", "candle/f32"];
const PREFIX: &str = "training/linear";
/// Sequences of a step, and tokens of each: k = 4 and a caption of 40.
const BATCH: usize = 8;
const TOKENS: usize = 44;
/// Steps that are measured, after one that is not.
const STEPS: usize = 3;

/// What a child process prints.
#[derive(Serialize, Deserialize)]
struct Measured {
    seconds: f64,
    /// Of the whole process, MiB; `None` where the system does not tell.
    peak: Option<f64>,
    /// Of the matrices, MiB.
    weights: f64,
}

/// Names of the rows.
pub(super) fn names() -> impl Iterator<Item = String> {
    KINDS.iter().flat_map(|kind| rows_of(kind))
}

fn rows_of(kind: &str) -> [String; 2] {
    ["step", "peak"].map(|what| format!("{PREFIX}/{kind}/{what}"))
}

/// Rows of step time and peak memory.
pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    for kind in KINDS {
        let [step, peak] = rows_of(kind);
        if !chosen(names, &step) && !chosen(names, &peak) {
            continue;
        }
        let measured = in_child::<Measured>(&[kind]).at(kind)?;
        let note = format!(
            "4 layers of width 1024, {:.0} MiB of weights, {BATCH} x {TOKENS} tokens, gradient of the input; {}",
            measured.weights,
            threads()
        );
        let row = |name: &str, value: f64, unit: &str| Row {
            name: name.to_string(),
            value,
            unit: unit.to_string(),
            note: note.clone(),
        };
        if chosen(names, &step) {
            emit(row(&step, measured.seconds * 1e3, "ms"))?;
        }
        if let Some(mebibytes) = measured.peak.filter(|_| chosen(names, &peak)) {
            emit(row(&peak, mebibytes, "MiB"))?;
        }
    }
    Ok(())
}

/// Measures one kind in this process and prints what it found.
///
/// # Errors
/// [`Error::Config`] for an unknown kind; what the device answers.
pub fn child(kind: &str) -> Result<()> {
    let backend = Candle::cpu();
    let (trained, dtype): (bool, fn(&str) -> Dtype) = match kind {
        "frozen/f32" => (false, |_| Dtype::F32),
        "frozen/Q8_0" => (false, |_| Dtype::Q8_0),
        "frozen/Q4_K" => (false, |_| Dtype::Q4_K),
        "candle/f32" => (true, |_| Dtype::F32),
        other => return Err(Error::Config(format!("expected one of {} but found {other}", KINDS.join(", ")))),
    };
    let measured = measure(&Layers { random: Random::new(&backend, dtype), trained })?;
    println!("{}", serde_json::to_string(&measured).map_err(|e| Error::Io(e.to_string()))?);
    Ok(())
}

/// Random weights, frozen as the models have them, or so that every matrix gets a gradient, as any does in Candle's own
/// product with a tracked input.
struct Layers<'a> {
    random: Random<'a, Candle>,
    trained: bool,
}

impl Weights<Candle> for Layers<'_> {
    fn backend(&self) -> &Candle {
        self.random.backend()
    }

    fn has(&self, name: &str) -> bool {
        self.random.has(name)
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        if !self.trained {
            return self.random.matrix(name, shape).await;
        }
        let values = dequantize(&self.random.raw(name, shape)?)?;
        Ok(Matrix::trained(Tensor::from_vec(values, &shape[..], self.backend().device())?))
    }

    async fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.random.tensor(name, shape).await
    }
}

fn config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 1024,
        intermediate_size: 2816,
        num_hidden_layers: 4,
        num_attention_heads: 16,
        num_key_value_heads: 16,
        head_dim: 64,
        vocab_size: 4096,
        max_position_embeddings: TOKENS,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: RopeLayout::Half,
        tie_word_embeddings: false,
    }
}

fn measure(layers: &Layers<'_>) -> Result<Measured> {
    let (config, backend) = (config(), layers.backend());
    let llama = pollster::block_on(Llama::load(layers, &config))?;
    let count = BATCH * TOKENS;
    let values: Vec<f32> =
        (0..count * config.hidden_size).map(|i| ((i * 7919 % 1013) as f32 / 506.0 - 1.0) * 0.02).collect();
    let x = Var::from_tensor(&backend.upload(&values, &[BATCH, TOKENS, config.hidden_size])?)?;
    let labels: Vec<Option<u32>> = (0..count).map(|i| Some((i * 31 % config.vocab_size) as u32)).collect();
    let step = || -> Result<()> {
        let hidden = llama.forward(backend, &x, None)?;
        let logits = llama.logits(backend, &hidden.reshape((count, config.hidden_size))?)?;
        let gradients = cross_entropy(&logits, &labels, 0.0, count)?.backward()?;
        let gradient = gradients.get(&x).ok_or_else(|| Error::Backend("expected a gradient but found none".into()))?;
        let size = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
        match size.is_finite() && size > 0.0 {
            true => Ok(()),
            false => Err(Error::Backend(format!("expected a gradient of finite size but found {size}"))),
        }
    };
    step()?;
    let mut seconds = Vec::new();
    for _ in 0..STEPS {
        let begun = Instant::now();
        step()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let weights = layers.random.bytes() as f64 / f64::from(1 << 20);
    Ok(Measured { seconds: seconds[STEPS / 2], peak: peak(), weights })
}

/// Most memory that this process ever had, MiB; Linux tells it.
pub(super) fn peak() -> Option<f64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_of_this_process() {
        if cfg!(target_os = "linux") {
            let before = peak().unwrap();
            let block = vec![1u8; 64 << 20];
            assert!(peak().unwrap() >= 64.0 && peak().unwrap() >= before && block[block.len() / 2] == 1);
        }
        assert!(matches!(child("frozen/none"), Err(Error::Config(_))));
    }
}

//! Shapes of a step, and weights that any program can make for itself: a hash of their names and places.

use std::fmt;

use half::bf16;
use rayon::prelude::*;
use rscapret::{
    Backend as _, Candle, Error, Result,
    backend::{
        RopeLayout,
        candle::{Compute, Matrix},
    },
    bench::seven_b_config,
    llama::LlamaConfig,
    nn::Weights,
    weights::{Dtype, RawTensor},
};
use serde::{Deserialize, Serialize};

/// What both programs are told, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Shape {
    pub device: String,
    pub compute: Compute,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub vocab_size: usize,
    pub feature_size: usize,
    pub joint_size: usize,
    pub visual_tokens: usize,
    /// Pairs of a step.
    pub batch: usize,
    /// Of each caption, its ends not counted.
    pub tokens: usize,
    /// Of ours.
    pub micro_batch: Option<usize>,
    /// That are measured, after two that are not.
    pub steps: usize,
}

impl Default for Shape {
    fn default() -> Self {
        let llama = seven_b_config();
        Shape {
            device: "cuda".to_string(),
            compute: Compute::Bf16,
            hidden_size: llama.hidden_size,
            intermediate_size: llama.intermediate_size,
            num_hidden_layers: llama.num_hidden_layers,
            num_attention_heads: llama.num_attention_heads,
            vocab_size: llama.vocab_size,
            feature_size: 1024,
            joint_size: 256,
            visual_tokens: 4,
            batch: 64,
            tokens: 40,
            micro_batch: None,
            steps: 5,
        }
    }
}

impl Shape {
    /// LLaMA-2-7B's, changed by JSON.
    pub fn new(changes: Option<&str>) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::Config(format!("expected the shapes of a step but found {e}"));
        changes.map_or_else(|| Ok(Shape::default()), |json| serde_json::from_str(json).map_err(wrong))
    }

    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Config(e.to_string()))
    }

    pub fn is_cpu(&self) -> bool {
        self.device == "cpu"
    }

    pub fn is_narrow(&self) -> bool {
        self.compute == Compute::Bf16
    }

    pub fn llama(&self) -> LlamaConfig {
        LlamaConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_attention_heads,
            head_dim: self.hidden_size / self.num_attention_heads.max(1),
            vocab_size: self.vocab_size,
            max_position_embeddings: self.visual_tokens + self.tokens + 2,
            // The other program has a Hugging Face checkpoint's.
            rope_layout: RopeLayout::Half,
            ..seven_b_config()
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { num_hidden_layers: layers, hidden_size: d, batch, tokens, visual_tokens: k, device, .. } = self;
        let compute = if self.is_narrow() { "bf16" } else { "f32" };
        write!(f, "{layers} layers of width {d}, {compute}, batch {batch}, {tokens} tokens, k = {k}, on {device}")?;
        self.micro_batch.map_or(Ok(()), |pairs| write!(f, ", {pairs} pairs at once"))
    }
}

/// FNV-1a of a name.
pub(super) fn seed(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// lowbias32 (Wellons, 2018).
pub(super) fn mixed(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// Even between plus and minus sqrt 3, times `spread`.
pub(super) fn value(seed: u32, at: u32, spread: f32) -> f32 {
    ((mixed(at ^ seed) >> 8) as f32 / (1u32 << 23) as f32 - 1.0) * (3f32.sqrt() * spread)
}

pub(super) fn values(name: &str, count: usize, spread: f32) -> Vec<f32> {
    let seed = seed(name);
    (0..count as u32).into_par_iter().map(|at| value(seed, at, spread)).collect()
}

/// The bytes of `count` numbers, made on all threads.
fn filled<const N: usize>(count: usize, number: impl Fn(u32) -> [u8; N] + Sync) -> Vec<u8> {
    const AT_ONCE: usize = 1 << 16;
    let mut bytes = vec![0; count * N];
    bytes.par_chunks_mut(AT_ONCE * N).enumerate().for_each(|(chunk, bytes)| {
        for (i, bytes) in bytes.chunks_exact_mut(N).enumerate() {
            bytes.copy_from_slice(&number((chunk * AT_ONCE + i) as u32));
        }
    });
    bytes
}

/// Matrices of variance 1 / columns, norms of ones.
pub(super) struct Hashed<'a>(pub &'a Candle);

impl Weights<Candle> for Hashed<'_> {
    fn backend(&self) -> &Candle {
        self.0
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    async fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let (seed, spread, count) = (seed(name), 1.0 / (shape[1] as f32).sqrt(), shape[0] * shape[1]);
        let (dtype, bytes) = match self.0.compute() {
            Compute::F32 => (Dtype::F32, filled(count, |at| value(seed, at, spread).to_le_bytes())),
            Compute::Bf16 => (Dtype::BF16, filled(count, |at| bf16::from_f32(value(seed, at, spread)).to_le_bytes())),
        };
        self.0.upload_matrix(&RawTensor { shape: shape.to_vec(), dtype, bytes })
    }

    async fn tensor(&self, _: &str, shape: &[usize]) -> Result<candle_core::Tensor> {
        self.0.upload(&vec![1.0; shape.iter().product()], shape)
    }
}

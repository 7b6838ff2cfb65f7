//! `train`'s TOML. Defaults are FROMAGe's (Koh et al., 2023), from whose published code RS-CapRet was made.

use std::path::PathBuf;

use rscapret::{Candle, Error, Result, backend::candle::Compute, projection::Conventions};
use serde::{Deserialize, Serialize};

use crate::{
    dataset::DatasetConfig,
    loss::SameString,
    optim::{OptimConfig, Schedule},
    stage::TrainingConfig,
};

/// `train`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// Frozen language model: a Hugging Face folder, its weights in one file or in shards, or a GGUF file, which stays as
    /// quantised as it is.
    pub llm: PathBuf,
    /// Whether a GGUF's blocks stay as they are.
    #[serde(default)]
    pub llm_weights: LlmWeights,
    /// Frozen image encoder, a Hugging Face CLIP folder.
    pub clip: PathBuf,
    /// What `rscapret features` wrote of `clip`; absent, the tower runs over all images at every start.
    pub features: Option<PathBuf>,
    /// Most pairs that go through the language model at once: bounds the memory, does not change the result beyond rounding;
    /// two that stand in one sequence stay together. Absent, a worker's whole share.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Visual tokens k of an image.
    pub visual_tokens: usize,
    /// Joint space J.
    pub joint_size: usize,
    /// Weight of the caption's cross-entropy.
    pub lambda_c: f64,
    /// Weight of each direction's InfoNCE.
    pub lambda_r: f64,
    /// Weight of the cross-entropy that teaches the language model to emit [RET] after a caption, for which it gets an
    /// output row of its own; 0 for neither.
    #[serde(default)]
    pub lambda_ret: f64,
    /// Which hidden state of the language model [RET] is read from, 1 to L, counted as transformers' `hidden_states`;
    /// absent, the last, after the final norm.
    #[serde(default)]
    pub hidden_layer: Option<usize>,
    /// Whether each step brings [RET]'s input row to the mean norm of the embedding rows.
    #[serde(default = "yes")]
    pub rescale_ret: bool,
    /// Share of the batch's pairs, 0 to 1, that stand two by two in one sequence when they are captioned.
    #[serde(default = "half")]
    pub concatenate: f64,
    /// Text between an image and its caption, in training and ever after; empty for none.
    #[serde(default)]
    pub prompt: String,
    /// How equal captions in one batch count.
    pub same_string: SameString,
    /// Noise on features, as a share of their standard deviation.
    pub feature_noise: f32,
    /// Longest caption, tokens; longer ones are cut.
    pub max_length: usize,
    /// Share of the captions that retrieval sees as someone would type them: lower case, no full stop, perhaps a part.
    #[serde(default)]
    pub query_share: f64,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where pairs come from; the first one's `val` split validates.
    pub data: Vec<Source>,
}

/// What becomes of the language model's matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LlmWeights {
    /// Quantised ones stay so: the least memory.
    #[default]
    Stored,
    /// Unpacked once, to bf16: faster where memory has room for it.
    Bf16,
}

fn yes() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

/// One dataset, and how many views of each image are encoded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Flips and quarter turns of each image, 1 to 8.
    pub views: usize,
    /// The dataset.
    pub dataset: DatasetConfig,
}

impl Config {
    /// # Errors
    /// [`Error::Config`] for values out of their range.
    pub fn check(&self) -> Result<()> {
        let shares = [("concatenate", self.concatenate), ("query_share", self.query_share)];
        if let Some((name, found)) = shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(Error::Config(format!("expected `{name}` from 0 to 1 but found {found}")));
        }
        let weights = [("lambda_c", self.lambda_c), ("lambda_r", self.lambda_r), ("lambda_ret", self.lambda_ret)];
        if let Some((name, found)) = weights.iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
            return Err(Error::Config(format!("expected `{name}` to be 0 or more but found {found}")));
        }
        let micro_batch = ("micro_batch", self.micro_batch.unwrap_or(1));
        let sizes = [("visual_tokens", self.visual_tokens), ("joint_size", self.joint_size), micro_batch];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::Config(format!("expected `{name}` to be 1 or more but found 0")));
        }
        if (self.llm_weights, self.training.compute) == (LlmWeights::Bf16, Compute::F32) {
            return Err(Error::Config(
                "expected compute = \"bf16\" in [training] for llm_weights = \"bf16\" but found \"f32\"".into(),
            ));
        }
        Ok(())
    }

    /// What the language model is loaded on, of the device that computes.
    pub fn llm_backend(&self, backend: &Candle) -> Candle {
        match self.llm_weights {
            LlmWeights::Stored => backend.clone(),
            LlmWeights::Bf16 => backend.unpacking(),
        }
    }

    /// What inference has to do likewise.
    pub(super) fn conventions(&self) -> Conventions {
        Conventions { hidden_layer: self.hidden_layer, prompt: self.prompt.clone() }
    }
}

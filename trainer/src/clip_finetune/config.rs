//! What fine-tuning is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    dataset::DatasetConfig,
    images::Augment,
    loss::SameString,
    optim::{OptimConfig, Schedule},
    stage::TrainingConfig,
};

/// `clip finetune`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// Pairs that go through the towers at once: bounds the memory, does not change the result; 32 if absent.
    #[serde(default = "micro_batch")]
    pub micro_batch: usize,
    /// What is trained on: a CLIP of Hugging Face or OpenCLIP ([`crate::files::clip::ClipFiles::open`]).
    pub clip: PathBuf,
    /// How equal captions in one batch count; masked if absent.
    #[serde(default = "same_string")]
    pub same_string: SameString,
    /// Views of the images; absent, they are seen as CLIP's preprocessing gives them.
    pub augment: Option<Augment>,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where pairs come from; the first one's `val` split validates.
    pub data: Vec<Source>,
}

fn micro_batch() -> usize {
    32
}

fn same_string() -> SameString {
    SameString::Masked
}

/// One dataset.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The dataset.
    pub dataset: DatasetConfig,
}

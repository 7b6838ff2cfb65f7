//! `pretrain-clip`'s TOML.

use std::path::PathBuf;

use rscapret::{
    Error, Result,
    clip::{ClipTextConfig, ClipVisionConfig},
};
use serde::{Deserialize, Serialize};

use crate::{
    dataset::{DatasetConfig, Item},
    images::Augment,
    loss::SameString,
    optim::{OptimConfig, Schedule},
    stage::TrainingConfig,
};

/// `pretrain-clip`'s TOML.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length, batch and rhythm.
    pub training: TrainingConfig,
    /// `tokenizer.json`; trained on the captions if it is not there.
    pub tokenizer: PathBuf,
    /// What the vision tower begins as: a GGUF, as in a bundle, or a CLIP of the same shape; absent, random numbers.
    pub vision_from: Option<PathBuf>,
    /// Side of the images in memory, which views are cut from, pixels.
    pub cache_size: usize,
    /// Share of the steps, from the start, that see `patch_keep` of the patches.
    pub drop_until: f64,
    /// Share of the patches that they see.
    pub patch_keep: f64,
    /// How often an image skips a branch of the last layer (stochastic depth; Huang et al., 2016); in a straight line less
    /// often towards the first, which is never skipped.
    #[serde(default)]
    pub depth_drop: f64,
    /// Weight of the class loss.
    pub class_weight: f64,
    /// Of the class loss.
    pub label_smoothing: f64,
    /// How equal captions in one batch count.
    pub same_string: SameString,
    /// Vision tower; what is absent is CLIP's.
    pub vision: ClipVisionConfig,
    /// Text tower; what is absent is CLIP's.
    pub text: ClipTextConfig,
    /// Views.
    #[serde(default)]
    pub augment: Augment,
    /// A loss of captions beside the others; absent, there is none.
    pub captioning: Option<Captioning>,
    /// Optimiser.
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default)]
    pub schedule: Schedule,
    /// Where pairs come from.
    pub data: Vec<Source>,
}

/// A frozen language model that writes captions by the tower's features, through a map which is trained with the tower and then
/// forgotten: features are to hold what captions tell. CoCa (Yu et al., 2022) has both losses, with a decoder that is
/// trained, too.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captioning {
    /// As in `train`: a Hugging Face folder or a GGUF.
    pub llm: PathBuf,
    /// Weight of the caption's cross-entropy.
    pub weight: f64,
    /// Visual tokens of an image.
    #[serde(default = "one_token")]
    pub visual_tokens: usize,
    /// Longest caption, tokens; longer ones are cut.
    #[serde(default = "long")]
    pub max_length: usize,
}

fn one_token() -> usize {
    1
}

fn long() -> usize {
    64
}

impl Config {
    /// # Errors
    /// [`Error::Config`] for values out of their range.
    pub(super) fn check(&self) -> Result<()> {
        let Some(captioning) = &self.captioning else { return Ok(()) };
        if !(captioning.weight.is_finite() && captioning.weight >= 0.0) {
            let found = captioning.weight;
            return Err(Error::Config(format!("captioning: expected `weight` to be 0 or more but found {found}")));
        }
        if captioning.visual_tokens == 0 {
            return Err(Error::Config("captioning: expected `visual_tokens` to be 1 or more but found 0".into()));
        }
        Ok(())
    }
}

/// One dataset with the rule that tells an image's class.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// How the class is known.
    pub classes: ClassRule,
    /// The dataset.
    pub dataset: DatasetConfig,
}

/// How an image's class is known from its file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassRule {
    /// `airport_12.jpg` is an airport (RSICD); names without a class have none.
    Prefix,
    /// `1.jpg` to `100.jpg` are the first class, and so on (UC Merced).
    Hundred,
    /// It is not known.
    None,
}

impl ClassRule {
    pub(super) fn class(self, item: &Item) -> Option<String> {
        let stem = item.image.file_stem()?.to_str()?;
        match self {
            ClassRule::Prefix => stem.rsplit_once('_').map(|(class, _)| class.to_string()),
            ClassRule::Hundred => Some(format!("{:02}", stem.parse::<u32>().ok()?.checked_sub(1)? / 100)),
            ClassRule::None => None,
        }
    }
}

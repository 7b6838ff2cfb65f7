//! `train`'s TOML. Defaults are FROMAGe's (Koh et al., 2023), from whose published code RS-CapRet was made.

use std::path::PathBuf;

use rscapret::{Candle, Error, Result, backend::candle::Compute, clip::ImageFeature, projection::Conventions};
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
    /// What a caption is made from.
    #[serde(default, skip_serializing_if = "CaptionedFrom::is_class")]
    pub image_feature: CaptionedFrom,
    /// Side g of the grid that patches are averaged to; it divides the tower's patches of a side. Of patches alone.
    #[serde(default)]
    pub patch_grid: Option<usize>,
    /// Visual tokens k of an image, or of each of the g g vectors of its patches.
    #[serde(default = "one_token")]
    pub visual_tokens: usize,
    /// Joint space J.
    #[serde(default = "joint")]
    pub joint_size: usize,
    /// Weight of the caption's cross-entropy.
    #[serde(default = "whole")]
    pub lambda_c: f64,
    /// Weight of each direction's InfoNCE.
    #[serde(default = "whole")]
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
    /// Share of the probability that the caption's cross-entropy gives to all tokens alike (Szegedy et al., 2016); validation
    /// gives none.
    #[serde(default)]
    pub label_smoothing: f64,
    /// How equal captions in one batch count.
    #[serde(default = "masked")]
    pub same_string: SameString,
    /// Noise on features, as a share of the standard deviation of each of their vectors.
    #[serde(default)]
    pub feature_noise: f32,
    /// Longest caption, tokens; longer ones are cut. FROMAGe has 24, captions of aerial images reach 50.
    #[serde(default = "long")]
    pub max_length: usize,
    /// Share of the captions that retrieval sees as someone would type them: lower case, no full stop, perhaps a part.
    #[serde(default)]
    pub query_share: f64,
    /// Optimiser.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Rates over time.
    #[serde(default = "Schedule::fromage", deserialize_with = "Schedule::or_fromage")]
    pub schedule: Schedule,
    /// Where pairs come from; the first one's `val` split validates.
    pub data: Vec<Source>,
}

/// What of an image the language model reads to caption it. Retrieval always takes the class token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptionedFrom {
    /// The class token.
    #[default]
    Class,
    /// The patches of the second-to-last layer ([`ImageFeature::Patches`]).
    Patches,
}

impl CaptionedFrom {
    fn is_class(&self) -> bool {
        *self == CaptionedFrom::Class
    }
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

fn one_token() -> usize {
    1
}

fn joint() -> usize {
    256
}

fn whole() -> f64 {
    1.0
}

fn masked() -> SameString {
    SameString::Masked
}

fn long() -> usize {
    64
}

fn as_it_is() -> usize {
    1
}

fn half() -> f64 {
    0.5
}

/// One dataset, and how many views of each image are encoded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Flips and quarter turns of each image, 1 (as it is) to 8.
    #[serde(default = "as_it_is")]
    pub views: usize,
    /// The dataset.
    pub dataset: DatasetConfig,
}

impl Config {
    /// # Errors
    /// [`Error::Config`] for values out of their range.
    pub fn check(&self) -> Result<()> {
        let shares = [
            ("concatenate", self.concatenate),
            ("query_share", self.query_share),
            ("label_smoothing", self.label_smoothing),
        ];
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
        self.feature()?;
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

    /// What is taken of the tower.
    ///
    /// # Errors
    /// [`Error::Config`] for patches without a grid, a grid without patches, one out of its range.
    pub fn feature(&self) -> Result<ImageFeature> {
        let most = ImageFeature::MAX_GRID;
        match (self.image_feature, self.patch_grid) {
            (CaptionedFrom::Class, None) => Ok(ImageFeature::Class),
            (CaptionedFrom::Patches, Some(grid)) if (1..=most).contains(&grid) => Ok(ImageFeature::Patches { grid }),
            (CaptionedFrom::Class, Some(grid)) => Err(Error::Config(format!(
                "expected no `patch_grid` for image_feature = \"class\" but found {grid}\n\
                 leave it out, or set image_feature = \"patches\""
            ))),
            (CaptionedFrom::Patches, grid) => Err(Error::Config(format!(
                "expected `patch_grid` from 1 to {most} for image_feature = \"patches\" but found {}\n\
                 it divides the tower's patches of a side: of ViT-L/14's 16, 4 makes 16 vectors",
                grid.map_or("none".to_string(), |grid| grid.to_string())
            ))),
        }
    }

    /// What inference has to do likewise.
    ///
    /// # Errors
    /// As [`Config::feature`].
    pub(super) fn conventions(&self) -> Result<Conventions> {
        let (hidden_layer, prompt) = (self.hidden_layer, self.prompt.clone());
        Ok(Conventions { hidden_layer, prompt, image_feature: self.feature()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Shape;

    #[test]
    fn what_is_left_out_is_fromages() {
        let text = "llm = 'llm'\nclip = 'clip'\ntraining = { seed = 1, steps = 9, workers = 1, validate_every = 3 }\n\
                    [[data]]\ndataset = { name = 'own', annotations = 'own.csv' }\n";
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!((config.visual_tokens, config.joint_size, config.max_length), (1, 256, 64));
        assert_eq!((config.lambda_c, config.lambda_r, config.lambda_ret), (1.0, 1.0, 0.0));
        assert_eq!((config.concatenate, config.rescale_ret, config.hidden_layer), (0.5, true, None));
        assert_eq!((config.feature_noise, config.label_smoothing, config.query_share), (0.0, 0.0, 0.0));
        assert_eq!((config.same_string, config.training.batch, config.data[0].views), (SameString::Masked, 180, 1));
        let OptimConfig { lr, beta1, beta2, eps, weight_decay, clip, muon_lr } = config.optim;
        assert_eq!([lr, beta1, beta2, eps, weight_decay, clip, muon_lr], [3e-4, 0.9, 0.95, 1e-8, 0.0, 1.0, 0.0]);
        // 100 steps up, a tenth after every 2,000.
        let factor = |step| (config.schedule.factor(step, 10_000) * 1e9).round() / 1e9;
        assert_eq!([0, 49, 99, 1999, 2000, 4000].map(factor), [0.01, 0.5, 1.0, 1.0, 0.1, 0.01]);
        // Of a table, too.
        let warm: Config = toml::from_str(&format!("schedule = {{ warmup = 7 }}\n{text}")).unwrap();
        assert_eq!((warm.schedule.warmup, warm.schedule.shape, warm.schedule.every), (7, Shape::Step, 2000));
        // And what is written into the run's folder is read as the same.
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::to_string(&toml::from_str::<Config>(&written).unwrap()).unwrap(), written);
        // The class token is nothing to write about.
        assert!(!written.contains("image_feature") && !written.contains("patch_grid"), "{written}");
    }

    #[test]
    fn patches_have_a_grid_and_the_class_token_has_none() {
        let text = "llm = 'llm'\nclip = 'clip'\ntraining = { seed = 1, steps = 9, workers = 1, validate_every = 3 }\n\
                    data = [{ dataset = { name = 'own', annotations = 'own.csv' } }]\n";
        let of = |lines: &str| toml::from_str::<Config>(&format!("{text}{lines}")).unwrap();
        assert_eq!(of("").feature().unwrap(), ImageFeature::Class);
        assert_eq!(of("image_feature = 'class'").conventions().unwrap(), Conventions::default());
        let patches = of("image_feature = 'patches'\npatch_grid = 4");
        patches.check().unwrap();
        assert_eq!(patches.feature().unwrap(), ImageFeature::Patches { grid: 4 });
        let written = toml::to_string(&patches).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap().conventions().unwrap(), patches.conventions().unwrap());
        for (lines, words) in [
            ("image_feature = 'patches'", "`patch_grid` from 1 to 64 for image_feature = \"patches\" but found none"),
            ("image_feature = 'patches'\npatch_grid = 0", "but found 0"),
            ("image_feature = 'patches'\npatch_grid = 65", "but found 65"),
            ("patch_grid = 4", "expected no `patch_grid` for image_feature = \"class\" but found 4"),
        ] {
            let error = of(lines).check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(toml::from_str::<Config>(&format!("{text}image_feature = 'patch'")).is_err());
    }
}

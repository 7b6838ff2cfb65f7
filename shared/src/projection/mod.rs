//! The bridge: the only weights that RS-CapRet trains (arXiv 2402.06475; linear maps as in FROMAGe, Koh et al., 2023).

mod conventions;

pub use conventions::Conventions;

use std::collections::BTreeMap;

use crate::{
    backend::Backend,
    clip::ImageFeature,
    error::{Error, Result},
    nn::{Checkpoint, Linear, Weights},
    weights::{ByteSource, TensorSource, safetensors::SafetensorsFile},
};

/// Key of the metadata that names the language model's file by its SHA-256.
pub const LLM_SHA256: &str = "llm_sha256";
/// Key of the metadata that names the vision tower's file by its SHA-256.
pub const VISION_SHA256: &str = "vision_sha256";

/// Sizes of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectionsConfig {
    /// Image feature C.
    pub feature_size: usize,
    /// Language model's width D.
    pub hidden_size: usize,
    /// Joint space J.
    pub joint_size: usize,
    /// Visual tokens k of each vector that a caption is made from: of the class token, or of a patch.
    pub visual_tokens: usize,
    /// Whether the language model was taught to emit [RET], by an output row of its own.
    pub ret_output: bool,
}

impl ProjectionsConfig {
    /// Every tensor of the file with its shape.
    pub fn tensors(&self) -> BTreeMap<&'static str, Vec<usize>> {
        let (c, d, j, k) = (self.feature_size, self.hidden_size, self.joint_size, self.visual_tokens);
        let mut tensors = BTreeMap::from([
            ("caption.weight", vec![k * d, c]),
            ("caption.bias", vec![k * d]),
            ("image.weight", vec![j, c]),
            ("image.bias", vec![j]),
            ("text.weight", vec![j, d]),
            ("text.bias", vec![j]),
            ("ret_embedding", vec![d]),
            ("logit_scale", vec![1]),
        ]);
        if self.ret_output {
            tensors.insert("ret_output.weight", vec![1, d]);
        }
        tensors
    }

    /// Trained numbers in all.
    pub fn parameters(&self) -> usize {
        self.tensors().values().map(|shape| shape.iter().product::<usize>()).sum()
    }
}

/// The trained maps on a device.
#[derive(Clone)]
pub struct Projections<B: Backend> {
    config: ProjectionsConfig,
    conventions: Conventions,
    caption: Linear<B>,
    image: Linear<B>,
    text: Linear<B>,
    ret_embedding: B::Tensor,
    ret_output: Option<Linear<B>>,
    logit_scale: B::Tensor,
}

impl<B: Backend> Projections<B> {
    /// Loads the tensors of [`ProjectionsConfig::tensors`]; the conventions are the usual ones.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub async fn load(w: &impl Weights<B>, config: ProjectionsConfig) -> Result<Self> {
        let ProjectionsConfig { feature_size: c, hidden_size: d, joint_size: j, visual_tokens: k, ret_output } = config;
        Ok(Projections {
            caption: Linear::load(w, "caption", k * d, c).await?,
            image: Linear::load(w, "image", j, c).await?,
            text: Linear::load(w, "text", j, d).await?,
            ret_embedding: w.tensor("ret_embedding", &[d]).await?,
            ret_output: match ret_output {
                true => Some(Linear::load_unbiased(w, "ret_output", 1, d).await?),
                false => None,
            },
            logit_scale: w.tensor("logit_scale", &[1]).await?,
            conventions: Conventions::default(),
            config,
        })
    }

    /// The same, used by other conventions.
    pub fn with_conventions(self, conventions: Conventions) -> Self {
        Projections { conventions, ..self }
    }

    /// Opens `projections.safetensors` for a language model of width `hidden_size` and image features of
    /// `feature_size`. Its metadata must name the files that it was trained for: (key, SHA-256) pairs of [`LLM_SHA256`]
    /// and [`VISION_SHA256`]. It also holds the [`Conventions`].
    ///
    /// # Errors
    /// [`Error::Config`] if it was trained for other files; a missing, extra or misshapen tensor; metadata that say no
    /// conventions.
    pub async fn open<S: ByteSource>(
        backend: &B,
        source: S,
        feature_size: usize,
        hidden_size: usize,
        trained_for: &[(&str, &str)],
    ) -> Result<Self> {
        let file = SafetensorsFile::open(source).await?;
        for (key, expected) in trained_for {
            let found = file.metadata(key).unwrap_or("none");
            if found != *expected {
                return Err(Error::Config(format!(
                    "expected projections with {key} = {expected} but found {found}\nthey were trained for another file: use the bundle as it was exported"
                )));
            }
        }
        let rows = |name: &str| {
            let info = file.info(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
            Ok::<usize, Error>(info.shape.first().copied().unwrap_or_default())
        };
        let (caption, joint_size) = (rows("caption.weight")?, rows("image.weight")?);
        if hidden_size == 0 || caption == 0 || caption % hidden_size != 0 {
            return Err(Error::Shape {
                name: "caption.weight".into(),
                expected: vec![hidden_size, feature_size],
                found: file.info("caption.weight").map(|t| t.shape.clone()).unwrap_or_default(),
            });
        }
        let config = ProjectionsConfig {
            feature_size,
            hidden_size,
            joint_size,
            visual_tokens: caption / hidden_size,
            ret_output: file.info("ret_output.weight").is_some(),
        };
        let conventions = Conventions::from_metadata(|key| file.metadata(key))?;
        let checkpoint = Checkpoint::new(backend, &file);
        let projections = Self::load(&checkpoint, config).await?;
        checkpoint.finish(|_| true)?;
        Ok(projections.with_conventions(conventions))
    }

    /// Its sizes.
    pub fn config(&self) -> ProjectionsConfig {
        self.config
    }

    /// How the models are asked.
    pub fn conventions(&self) -> &Conventions {
        &self.conventions
    }

    /// Width of a picture's features: C, or (1 + g g) C with those of patches.
    pub fn feature_width(&self) -> usize {
        self.conventions.image_feature.vectors().saturating_mul(self.config.feature_size)
    }

    /// Visual tokens N of a picture: k, or g g k of patches.
    pub fn tokens_of_image(&self) -> usize {
        self.conventions.image_feature.captioned().saturating_mul(self.config.visual_tokens)
    }

    /// Features (B, [`Projections::feature_width`]) -> visual tokens (B, N, D) in the language model's input space.
    ///
    /// # Errors
    /// [`Error::Shape`] for features of another kind; what the backend refuses.
    pub fn visual_tokens(&self, backend: &B, features: &B::Tensor) -> Result<B::Tensor> {
        let (batch, c) = (self.batch(backend, features)?, self.config.feature_size);
        let tokens = match self.conventions.image_feature {
            ImageFeature::Class => self.caption.forward(backend, features)?,
            ImageFeature::Patches { .. } => {
                let patches = self.conventions.image_feature.captioned();
                let vectors = backend.narrow(features, 1, c, patches * c)?;
                self.caption.forward(backend, &backend.reshape(&vectors, &[batch, patches, c])?)?
            }
        };
        backend.reshape(&tokens, &[batch, self.tokens_of_image(), self.config.hidden_size])
    }

    /// Features (B, [`Projections::feature_width`]) -> unit vectors (B, J), of the class token alone.
    ///
    /// # Errors
    /// As [`Projections::visual_tokens`].
    pub fn image_embedding(&self, backend: &B, features: &B::Tensor) -> Result<B::Tensor> {
        self.batch(backend, features)?;
        let image = match self.conventions.image_feature {
            ImageFeature::Class => self.image.forward(backend, features)?,
            ImageFeature::Patches { .. } => {
                self.image.forward(backend, &backend.narrow(features, 1, 0, self.config.feature_size)?)?
            }
        };
        backend.l2_normalize(&image)
    }

    /// B of features (B, width).
    fn batch(&self, backend: &B, features: &B::Tensor) -> Result<usize> {
        let (shape, width) = (backend.shape(features), self.feature_width());
        match shape[..] {
            [batch, found] if found == width => Ok(batch),
            _ => Err(Error::Shape { name: "features".into(), expected: vec![1, width], found: shape }),
        }
    }

    /// Hidden states at [RET] (B, D) -> unit vectors (B, J).
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn text_embedding(&self, backend: &B, hidden: &B::Tensor) -> Result<B::Tensor> {
        backend.l2_normalize(&self.text.forward(backend, hidden)?)
    }

    /// The input row of [RET] (D): appended to a text's embeddings, so that the vocabulary stays as published.
    pub fn ret_embedding(&self) -> &B::Tensor {
        &self.ret_embedding
    }

    /// Logits (B, 1) of [RET] itself after hidden states (B, D) that follow the final norm; they stand beside the
    /// vocabulary's. `None` where the language model was not taught to emit it.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn ret_logits(&self, backend: &B, hidden: &B::Tensor) -> Result<Option<B::Tensor>> {
        self.ret_output.as_ref().map(|row| row.forward(backend, hidden)).transpose()
    }

    /// ln of the factor of similarities in the contrastive loss (1).
    pub fn logit_scale(&self) -> &B::Tensor {
        &self.logit_scale
    }
}

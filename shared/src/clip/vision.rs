//! The vision tower: pixels to image features.

use super::{
    config::ClipVisionConfig,
    feature::{ImageFeature, averages},
    transformer::{Branch, Encoder, Shape},
};
use crate::{
    backend::{Backend, Mask},
    error::Result,
    nn::{LayerNorm, Linear, Weights},
};

/// CLIP's vision transformer (Dosovitskiy et al., 2021; `CLIPVisionModel` of transformers).
#[derive(Clone)]
pub struct ClipVision<B: Backend> {
    config: ClipVisionConfig,
    patch_embedding: Linear<B>,
    class_embedding: B::Tensor,
    position_class: B::Tensor,
    position_patches: B::Tensor,
    pre_norm: LayerNorm<B>,
    encoder: Encoder<B>,
    post_norm: LayerNorm<B>,
}

/// What the tower says of a batch of images.
#[derive(Clone)]
pub struct VisionFeatures<B: Backend> {
    /// Class token after the final norm (B, D): `pooler_output`, the image feature C of the method.
    pub pooled: B::Tensor,
    /// All tokens before that norm (B, 1 + P, D): `last_hidden_state`.
    pub hidden: B::Tensor,
}

/// What training leaves out of a pass, so that the tower does not lean on it.
pub struct Dropped<'a, B: Backend> {
    /// Rows of (B P) that are seen, the same number for each image; `None` for all. A step costs less, too (FLIP; Li et
    /// al., 2023).
    pub patches: Option<&'a [u32]>,
    /// Stochastic depth (Huang et al., 2016), or whatever else is to happen to a branch.
    pub branch: Option<&'a Branch<'a, B>>,
}

impl<B: Backend> Default for Dropped<'_, B> {
    fn default() -> Self {
        Dropped { patches: None, branch: None }
    }
}

impl<B: Backend> ClipVision<B> {
    /// `vision_model. ...` of a checkpoint.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub async fn load(w: &impl Weights<B>, config: &ClipVisionConfig) -> Result<Self> {
        config.check()?;
        let (d, eps) = (config.hidden_size, config.layer_norm_eps);
        let name = |part: &str| format!("vision_model.{part}");
        let patch = config.patch_size;
        let position = w.tensor(&name("embeddings.position_embedding.weight"), &[1 + config.num_patches(), d]).await?;
        let backend = w.backend();
        Ok(ClipVision {
            patch_embedding: Linear::load_unbiased(w, &name("embeddings.patch_embedding"), d, 3 * patch * patch)
                .await?,
            class_embedding: w.tensor(&name("embeddings.class_embedding"), &[d]).await?,
            position_class: backend.narrow(&position, 0, 0, 1)?,
            position_patches: backend.narrow(&position, 0, 1, config.num_patches())?,
            // The checkpoint's own spelling.
            pre_norm: LayerNorm::load(w, &name("pre_layrnorm"), d, eps).await?,
            encoder: Encoder::load(
                w,
                &name("encoder"),
                Shape {
                    hidden_size: d,
                    intermediate_size: config.intermediate_size,
                    num_hidden_layers: config.num_hidden_layers,
                    num_attention_heads: config.num_attention_heads,
                    hidden_act: config.hidden_act,
                    layer_norm_eps: eps,
                },
            )
            .await?,
            post_norm: LayerNorm::load(w, &name("post_layernorm"), d, eps).await?,
            config: config.clone(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// pixels (B, 3, image_size, image_size), normalised by [`super::preprocess`].
    ///
    /// # Errors
    /// What the backend refuses, such as another image size.
    pub fn forward(&self, backend: &B, pixels: &B::Tensor) -> Result<VisionFeatures<B>> {
        self.forward_dropped(backend, pixels, &Dropped::default())
    }

    /// As [`ClipVision::forward`], without what training drops.
    ///
    /// # Errors
    /// As [`ClipVision::forward`]; what `dropped` answers.
    pub fn forward_dropped(
        &self,
        backend: &B,
        pixels: &B::Tensor,
        dropped: &Dropped<'_, B>,
    ) -> Result<VisionFeatures<B>> {
        let x = self.embed(backend, pixels, dropped.patches)?;
        let hidden = self.encoder.forward_branches(backend, &x, Mask::None, dropped.branch)?;
        Ok(VisionFeatures { pooled: self.pool(backend, &hidden)?, hidden })
    }

    /// Features of pixels (B, 3, image_size, image_size) in the form that the maps take them in: (B, vectors D), `vectors` those
    /// of [`ImageFeature::vectors`].
    ///
    /// # Errors
    /// As [`ClipVision::forward`] and [`ImageFeature::check`].
    pub fn features(&self, backend: &B, pixels: &B::Tensor, of: ImageFeature) -> Result<B::Tensor> {
        let ImageFeature::Patches { grid } = of else { return Ok(self.forward(backend, pixels)?.pooled) };
        of.check(&self.config)?;
        let x = self.embed(backend, pixels, None)?;
        let (layers, last) = (self.encoder.len(), self.encoder.len().saturating_sub(1));
        let before = self.encoder.forward_layers(backend, &x, Mask::None, 0..last, None)?;
        let hidden = self.encoder.forward_layers(backend, &before, Mask::None, last..layers, None)?;
        let (side, heads) = (self.config.patches_per_side(), self.config.num_attention_heads);
        let (batch, d) = (backend.shape(pixels)[0], self.config.hidden_size);
        let class = backend.reshape(&self.pool(backend, &hidden)?, &[batch, 1, d])?;
        let all = backend.concat(&[&class, &averages(backend, &before, side, grid, heads)?], 1)?;
        backend.reshape(&all, &[batch, of.vectors() * d])
    }

    /// What the first layer reads (B, 1 + P, D), of the patches that are seen.
    fn embed(&self, backend: &B, pixels: &B::Tensor, keep: Option<&[u32]>) -> Result<B::Tensor> {
        let batch = backend.shape(pixels)[0];
        let d = self.config.hidden_size;
        let patches = backend.patchify(pixels, self.config.patch_size)?;
        let mut patches = self.patch_embedding.forward(backend, &patches)?;
        patches = backend.add(&patches, &self.position_patches)?;
        if let Some(keep) = keep {
            let rows = backend.reshape(&patches, &[batch * self.config.num_patches(), d])?;
            patches = backend.reshape(&backend.index_rows(&rows, keep)?, &[batch, keep.len() / batch.max(1), d])?;
        }
        let class = backend.add(&self.position_class, &self.class_embedding)?;
        let class = backend.repeat_rows(&backend.reshape(&class, &[1, 1, d])?, batch)?;
        self.pre_norm.forward(backend, &backend.concat(&[&class, &patches], 1)?)
    }

    /// The class token of all tokens (B, 1 + P, D) after the final norm (B, D).
    fn pool(&self, backend: &B, hidden: &B::Tensor) -> Result<B::Tensor> {
        let shape = backend.shape(hidden);
        let class = backend.reshape(&backend.narrow(hidden, 1, 0, 1)?, &[shape[0], shape[2]])?;
        self.post_norm.forward(backend, &class)
    }
}

//! The two towers, and the heads that only training uses.

use candle_core::{DType, Tensor};
use pollster::block_on;
use rscapret::{
    Backend, Candle, Result,
    clip::{ClipConfig, ClipText, ClipVision, Dropped},
    nn::{Linear, Weights},
};

use crate::{loss::cross_entropy, vars::NewVars};

/// The towers with the maps into CLIP's own joint space, and a class head for each source, which only
/// training uses, as it does the map to a language model: one
/// softmax over all of them would teach the tower to tell the sources apart.
pub(super) struct SmallClip {
    pub backend: Candle,
    vision: ClipVision<Candle>,
    text: ClipText<Candle>,
    visual_projection: Linear<Candle>,
    text_projection: Linear<Candle>,
    class_heads: Vec<Linear<Candle>>,
    caption_head: Option<Linear<Candle>>,
    pub logit_scale: Tensor,
}

impl SmallClip {
    /// With class heads for so many classes of each source, and a map to `inputs` numbers for a language model.
    pub fn new(w: &NewVars, config: &ClipConfig, classes: &[usize], inputs: Option<usize>) -> Result<Self> {
        block_on(async {
            let (d, j) = (config.vision_config.hidden_size, config.projection_dim);
            let mut class_heads = Vec::with_capacity(classes.len());
            for (source, &classes) in classes.iter().enumerate() {
                class_heads.push(Linear::load(w, &format!("class_head.{source}"), classes.max(1), d).await?);
            }
            let caption_head = match inputs {
                Some(inputs) => Some(Linear::load(w, "caption_head", inputs, d).await?),
                None => None,
            };
            Ok(SmallClip {
                backend: w.backend().clone(),
                vision: ClipVision::load(w, &config.vision_config).await?,
                text: ClipText::load(w, &config.text_config).await?,
                visual_projection: Linear::load_unbiased(w, "visual_projection", j, d).await?,
                text_projection: Linear::load_unbiased(w, "text_projection", j, config.text_config.hidden_size).await?,
                class_heads,
                caption_head,
                logit_scale: w.tensor("logit_scale", &[1]).await?,
            })
        })
    }

    /// Unit vectors (B, J) and features (B, D).
    pub fn image(&self, pixels: &Tensor, dropped: &Dropped<'_, Candle>) -> Result<(Tensor, Tensor)> {
        let pooled = self.vision.forward_dropped(&self.backend, pixels, dropped)?.pooled;
        let embedding = self.backend.l2_normalize(&self.visual_projection.forward(&self.backend, &pooled)?)?;
        Ok((embedding, pooled))
    }

    /// Class logits of a source's images by their features (B, D).
    pub fn classes(&self, source: usize, pooled: &Tensor) -> Result<Tensor> {
        self.class_heads[source].forward(&self.backend, pooled)
    }

    /// Cross-entropy of the images that have a class, each among its source's, divided by `count`.
    pub fn class_loss(
        &self,
        pooled: &Tensor,
        labels: &[(usize, Option<u32>)],
        smoothing: f64,
        count: usize,
    ) -> Result<Tensor> {
        let mut total = Tensor::zeros((), DType::F32, pooled.device())?;
        for source in 0..self.class_heads.len() {
            let of = |&(_, (at, _)): &(usize, &(usize, Option<u32>))| *at == source;
            let (rows, labels): (Vec<u32>, Vec<Option<u32>>) =
                labels.iter().enumerate().filter(of).map(|(row, (_, label))| (row as u32, *label)).unzip();
            if labels.iter().any(Option::is_some) {
                let pooled = self.backend.index_rows(pooled, &rows)?;
                total = (total + cross_entropy(&self.classes(source, &pooled)?, &labels, smoothing, count)?)?;
            }
        }
        Ok(total)
    }

    /// What a decoder reads of images, by their features (B, D); none where the towers have no map to one.
    pub fn mapped(&self, pooled: &Tensor) -> Result<Option<Tensor>> {
        self.caption_head.as_ref().map(|map| map.forward(&self.backend, pooled)).transpose()
    }

    pub fn text(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let features = self.text.forward(&self.backend, ids)?;
        self.backend.l2_normalize(&self.text_projection.forward(&self.backend, &features)?)
    }
}

/// Pads to the longest with end of text.
pub(super) fn pad(ids: &[&[u32]], eos: u32) -> Vec<Vec<u32>> {
    let longest = ids.iter().map(|s| s.len()).max().unwrap_or_default();
    ids.iter().map(|s| s.iter().copied().chain(std::iter::repeat_n(eos, longest - s.len())).collect()).collect()
}

//! What the loss of a whole batch takes from its parts.

use candle_core::{Device, Tensor};
use rscapret::Result;

use super::{Group, gather_vectors};
use crate::vars::values;

/// Of one part of a batch, by their values alone: embeddings of b pairs.
pub struct Embedded {
    image: Vec<f32>,
    text: Vec<f32>,
}

impl Embedded {
    /// Of embeddings (b, J) each.
    ///
    /// # Errors
    /// What the device answers.
    pub fn new(image: &Tensor, text: &Tensor) -> Result<Self> {
        Ok(Embedded { image: values(image)?, text: values(text)? })
    }

    /// The parts of all processes, by rank.
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn gather(group: &dyn Group, own: Vec<Self>) -> Result<Vec<Self>> {
        let own = own.into_iter().flat_map(|part| [part.image, part.text]).collect();
        let mut all = gather_vectors(group, own)?.into_iter();
        let mut parts = Vec::new();
        while let (Some(image), Some(text)) = (all.next(), all.next()) {
            parts.push(Embedded { image, text });
        }
        Ok(parts)
    }

    /// Embeddings (b, J) of images and texts, of all `parts`, which have `pairs` together.
    ///
    /// # Errors
    /// What the device answers.
    pub fn tensors(parts: &[Self], pairs: usize, device: &Device) -> Result<Vec<(Tensor, Tensor)>> {
        let width = parts.iter().map(|part| part.image.len()).sum::<usize>() / pairs.max(1);
        let tensor = |values: &[f32]| Tensor::from_slice(values, (values.len() / width.max(1), width), device);
        parts.iter().map(|part| Ok((tensor(&part.image)?, tensor(&part.text)?))).collect()
    }
}

//! The text tower: token ids to text features. The bridge does not use it; contrastive training and CLIP's own
//! zero-shot retrieval do.

use super::{
    config::ClipTextConfig,
    transformer::{Encoder, Shape},
};
use crate::{
    backend::{Backend, Mask},
    error::{Error, Result},
    nn::{LayerNorm, Weights},
};

/// CLIP's causal text transformer (`CLIPTextModel` of transformers).
#[derive(Clone)]
pub struct ClipText<B: Backend> {
    config: ClipTextConfig,
    token_embedding: B::Matrix,
    position_embedding: B::Tensor,
    encoder: Encoder<B>,
    final_norm: LayerNorm<B>,
}

impl<B: Backend> ClipText<B> {
    /// `text_model. ...` of a checkpoint.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub async fn load(w: &impl Weights<B>, config: &ClipTextConfig) -> Result<Self> {
        config.check()?;
        let (d, eps) = (config.hidden_size, config.layer_norm_eps);
        let name = |part: &str| format!("text_model.{part}");
        Ok(ClipText {
            token_embedding: w.matrix(&name("embeddings.token_embedding.weight"), [config.vocab_size, d]).await?,
            position_embedding: w
                .tensor(&name("embeddings.position_embedding.weight"), &[config.max_position_embeddings, d])
                .await?,
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
            final_norm: LayerNorm::load(w, &name("final_layer_norm"), d, eps).await?,
            config: config.clone(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Sequences of one length T, padded at the end after their end-of-text token -> features (B, D), the hidden state
    /// at the end of each text. What follows it cannot matter, for the mask is causal.
    ///
    /// # Errors
    /// [`Error::Config`] for sequences of different or too great length, or without end of text.
    pub fn forward(&self, backend: &B, ids: &[Vec<u32>]) -> Result<B::Tensor> {
        let tokens = ids.first().map_or(0, Vec::len);
        let most = self.config.max_position_embeddings;
        if tokens == 0 || tokens > most || ids.iter().any(|s| s.len() != tokens) {
            return Err(Error::Config(format!(
                "text: expected sequences of one length from 1 to {most} but found lengths {:?}",
                ids.iter().map(Vec::len).collect::<Vec<_>>()
            )));
        }
        let d = self.config.hidden_size;
        let rows = backend.embedding(&self.token_embedding, &ids.concat())?;
        let x = backend.reshape(&rows, &[ids.len(), tokens, d])?;
        let x = backend.add(&x, &backend.narrow(&self.position_embedding, 0, 0, tokens)?)?;
        let hidden = self.encoder.forward(backend, &x, Mask::Causal)?;
        let ends = ids
            .iter()
            .enumerate()
            .map(|(b, sequence)| Ok((b * tokens + self.end(sequence)?) as u32))
            .collect::<Result<Vec<u32>>>()?;
        let hidden = backend.reshape(&hidden, &[ids.len() * tokens, d])?;
        // The norm goes row by row, so it may come after the choice of rows.
        self.final_norm.forward(backend, &backend.index_rows(&hidden, &ends)?)
    }

    /// Where a text ends: the first end-of-text id, or under the old rule (id 2) the first largest id.
    fn end(&self, sequence: &[u32]) -> Result<usize> {
        let end = match self.config.eos_token_id {
            2 => sequence.iter().max().copied().unwrap_or_default(),
            id => id,
        };
        sequence.iter().position(|&id| id == end).ok_or_else(|| {
            Error::Config(format!("text: expected the end-of-text token {end} but found none in {sequence:?}"))
        })
    }
}

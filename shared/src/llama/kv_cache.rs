//! State of a conversation: keys and values of what was seen. The caller owns it.

use super::config::LlamaConfig;
use crate::{
    backend::Backend,
    error::{Error, Result},
};

/// Keys and values of every layer for a batch of sequences of equal length, allocated once, for one model.
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<B::Cache>,
    pub(super) seen: usize,
    capacity: usize,
    /// How the device goes on by one token.
    pub(super) step: Option<Step<B>>,
}

/// A step of decoding that the device keeps.
pub(super) struct Step<B: Backend> {
    pub recording: B::Recording,
    /// Tokens seen when it was recorded.
    pub seen: usize,
    /// What it gives (1, V), anew each time.
    pub logits: B::Tensor,
}

impl<B: Backend> KvCache<B> {
    /// For `batch` sequences of at most `capacity` tokens: L times 2 times (batch, G, capacity, K) f32.
    ///
    /// # Errors
    /// [`Error::Config`] if the model was not made for so many tokens.
    pub fn new(backend: &B, config: &LlamaConfig, batch: usize, capacity: usize) -> Result<Self> {
        if capacity > config.max_position_embeddings {
            return Err(Error::Config(format!(
                "context: expected at most {} tokens but found {capacity}",
                config.max_position_embeddings
            )));
        }
        let layers = (0..config.num_hidden_layers)
            .map(|_| backend.cache(batch, config.num_key_value_heads, capacity, config.head_dim))
            .collect::<Result<_>>()?;
        Ok(KvCache { layers, seen: 0, capacity, step: None })
    }

    /// Tokens S seen.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Tokens that it was made for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.seen = self.seen.min(len);
    }

    /// As if `len` tokens had been seen: keys and values that were not written are zeros. Time does not depend on them.
    #[cfg(feature = "bench")]
    pub(crate) fn assume(&mut self, len: usize) {
        self.seen = len.min(self.capacity);
    }

    /// Makes sequence `i` continue what `rows[i]` was (beam search).
    ///
    /// # Errors
    /// A row outside of the batch.
    pub fn reorder(&mut self, backend: &B, rows: &[usize]) -> Result<()> {
        if rows.iter().enumerate().all(|(i, &r)| i == r) {
            return Ok(());
        }
        for layer in &mut self.layers {
            backend.cache_reorder(layer, rows, self.seen)?;
        }
        Ok(())
    }
}

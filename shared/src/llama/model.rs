//! The decoder. It takes token ids or input embeddings, gives hidden states and logits, and owns no state.

use super::{
    config::LlamaConfig,
    kv_cache::{KvCache, Step},
};
use crate::{
    backend::{Backend, SelfAttention},
    error::{Error, Result},
    nn::{Linear, RmsNorm, Weights},
};

/// A Llama on a device.
#[derive(Clone)]
pub struct Llama<B: Backend> {
    config: LlamaConfig,
    embed_tokens: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    rope: B::Tensor,
}

#[derive(Clone)]
struct Layer<B: Backend> {
    input_layernorm: RmsNorm<B>,
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    post_attention_layernorm: RmsNorm<B>,
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> Llama<B> {
    /// Loads a checkpoint's tensors by their Hugging Face names.
    ///
    /// # Errors
    /// A missing tensor or one of another shape; an untied configuration without `lm_head.weight`.
    pub async fn load(w: &impl Weights<B>, config: &LlamaConfig) -> Result<Self> {
        config.check()?;
        let (d, f, k, eps) = (config.hidden_size, config.intermediate_size, config.head_dim, config.rms_norm_eps);
        let (queries, keys) = (config.num_attention_heads * k, config.num_key_value_heads * k);
        let embed_tokens = w.matrix("model.embed_tokens.weight", [config.vocab_size, d]).await?;
        let mut layers = Vec::new();
        for i in 0..config.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::load(w, &name("input_layernorm"), d, eps).await?,
                q_proj: Linear::load_unbiased(w, &name("self_attn.q_proj"), queries, d).await?,
                k_proj: Linear::load_unbiased(w, &name("self_attn.k_proj"), keys, d).await?,
                v_proj: Linear::load_unbiased(w, &name("self_attn.v_proj"), keys, d).await?,
                o_proj: Linear::load_unbiased(w, &name("self_attn.o_proj"), d, queries).await?,
                post_attention_layernorm: RmsNorm::load(w, &name("post_attention_layernorm"), d, eps).await?,
                gate_proj: Linear::load_unbiased(w, &name("mlp.gate_proj"), f, d).await?,
                up_proj: Linear::load_unbiased(w, &name("mlp.up_proj"), f, d).await?,
                down_proj: Linear::load_unbiased(w, &name("mlp.down_proj"), d, f).await?,
            });
        }
        let lm_head = if config.tie_word_embeddings {
            Linear::new(embed_tokens.clone(), None)
        } else {
            Linear::load_unbiased(w, "lm_head", config.vocab_size, d).await?
        };
        let positions = config.max_position_embeddings;
        let backend = w.backend();
        Ok(Llama {
            embed_tokens,
            layers,
            norm: RmsNorm::load(w, "model.norm", d, eps).await?,
            lm_head,
            rope: backend.upload(&config.rope_table(positions), &[2, positions, k / 2])?,
            config: config.clone(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Input embeddings of tokens: ids -> (ids, D).
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn embed(&self, backend: &B, ids: &[u32]) -> Result<B::Tensor> {
        backend.embedding(&self.embed_tokens, ids)
    }

    /// The same for ids that [`Backend::choose`] left on the device.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn embed_chosen(&self, backend: &B, ids: &B::Tensor) -> Result<B::Tensor> {
        backend.embedding_of(&self.embed_tokens, ids)
    }

    /// Hidden states after the final norm: input embeddings (B, T, D) -> (B, T, D), causally, continuing `cache` where
    /// one is given (and advancing it by T). Padding stands at the end of a sequence, where it cannot matter.
    ///
    /// # Errors
    /// [`Error::Config`] if the context is full.
    pub fn forward(&self, backend: &B, x: &B::Tensor, mut cache: Option<&mut KvCache<B>>) -> Result<B::Tensor> {
        let start = cache.as_ref().map_or(0, |c| c.seen);
        let most = cache.as_ref().map_or(self.config.max_position_embeddings, |c| c.capacity());
        let end = room(start + backend.shape(x)[1], most)?;
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let own = cache.as_deref_mut().map(|cache| &mut cache.layers[i]);
            x = self.layer(backend, layer, &x, own, start)?;
        }
        if let Some(cache) = cache {
            cache.seen = end;
        }
        self.norm.forward(backend, &x)
    }

    /// Hidden states (B, T, D) of input embeddings (B, T, D), one for each of `wanted`, causally, continuing `cache` where one
    /// is given (and advancing it by T). They are counted as transformers' `hidden_states`: 0 is the input, n < L the output
    /// of n layers, and L the last, after the final norm. Without a cache no layer above those that are wanted is computed.
    ///
    /// # Errors
    /// [`Error::Config`] for more than L, and if the context is full.
    pub fn hidden_states(
        &self,
        backend: &B,
        x: &B::Tensor,
        mut cache: Option<&mut KvCache<B>>,
        wanted: &[usize],
    ) -> Result<Vec<B::Tensor>> {
        let start = cache.as_ref().map_or(0, |c| c.seen);
        let most = cache.as_ref().map_or(self.config.max_position_embeddings, |c| c.capacity());
        let end = room(start + backend.shape(x)[1], most)?;
        let (last, highest) = (self.layers.len(), wanted.iter().copied().max().unwrap_or_default());
        if highest > last {
            return Err(Error::Config(format!("expected a hidden state from 0 to {last} but found {highest}")));
        }
        // What comes later attends to every layer's keys.
        let computed = if cache.is_some() { last } else { highest };
        let mut states = vec![None; wanted.len()];
        let mut x = x.clone();
        for n in 0..=computed {
            if n > 0 {
                let own = cache.as_deref_mut().map(|cache| &mut cache.layers[n - 1]);
                x = self.layer(backend, &self.layers[n - 1], &x, own, start)?;
            }
            if n == last {
                x = self.norm.forward(backend, &x)?;
            }
            states.iter_mut().zip(wanted).filter(|(_, at)| **at == n).for_each(|(state, _)| *state = Some(x.clone()));
        }
        if let Some(cache) = cache {
            cache.seen = end;
        }
        Ok(states.into_iter().flatten().collect())
    }

    /// Logits (1, V) after one more token of one sequence, whose id [`Backend::choose`] left in `ids` (1). The device keeps the
    /// step in the cache and only repeats it later, where it can and the ids lie in the same place; so the logits of one
    /// step are gone with the next.
    ///
    /// # Errors
    /// [`Error::Config`] if the context is full.
    pub fn decode(&self, backend: &B, ids: &B::Tensor, cache: &mut KvCache<B>) -> Result<B::Tensor> {
        let end = room(cache.seen + 1, cache.capacity())?;
        if let Some(step) = &cache.step {
            let moved = cache.seen as i64 - step.seen as i64;
            if backend.replay(&step.recording, ids, moved)? {
                cache.seen = end;
                return Ok(step.logits.clone());
            }
        }
        // What it held is free to be taken again.
        cache.step = None;
        let seen = cache.seen;
        let (logits, recording) = backend.record(ids, || {
            let d = self.config.hidden_size;
            let x = backend.reshape(&self.embed_chosen(backend, ids)?, &[1, 1, d])?;
            let hidden = self.forward(backend, &x, Some(cache))?;
            self.logits(backend, &backend.reshape(&hidden, &[1, d])?)
        })?;
        cache.step = recording.map(|recording| Step { recording, seen, logits: logits.clone() });
        Ok(logits)
    }

    /// One layer: x (B, T, D), same shape out.
    fn layer(
        &self,
        backend: &B,
        layer: &Layer<B>,
        x: &B::Tensor,
        cache: Option<&mut B::Cache>,
        start: usize,
    ) -> Result<B::Tensor> {
        let x = backend.attention_block(cache, x, &self.attention(layer), layer.o_proj.weight(), start)?;
        let mlp = [&layer.gate_proj, &layer.up_proj, &layer.down_proj].map(Linear::weight);
        backend.mlp_block(&x, layer.post_attention_layernorm.parts(), mlp)
    }

    fn attention<'a>(&'a self, layer: &'a Layer<B>) -> SelfAttention<'a, B> {
        SelfAttention {
            norm: layer.input_layernorm.parts(),
            q: layer.q_proj.weight(),
            k: layer.k_proj.weight(),
            v: layer.v_proj.weight(),
            rope: &self.rope,
            layout: self.config.rope_layout,
            heads: self.config.num_attention_heads,
            groups: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Logits of hidden states: (..., D) -> (..., V).
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn logits(&self, backend: &B, hidden: &B::Tensor) -> Result<B::Tensor> {
        self.lm_head.forward(backend, hidden)
    }
}

/// `tokens`, if they fit.
fn room(tokens: usize, most: usize) -> Result<usize> {
    if tokens > most {
        return Err(Error::Config(format!(
            "context: expected at most {most} tokens but found {tokens}\ngive a shorter text"
        )));
    }
    Ok(tokens)
}

//! Prefill and decoding of language models.

use std::cell::RefCell;

use super::{Out, finite, random::Random};
use crate::{
    backend::{Backend, RopeLayout},
    caption::sampling::argmax,
    error::Result,
    llama::{KvCache, Llama, LlamaConfig, RopeScaling, load_llama},
    weights::Dtype,
};

pub(super) const DEMO: &[&str] = &["prefill/demo", "decode/demo"];

/// A model of made-up weights, and the names of its rows: prefill, decoding, decoding late in a long context.
pub(super) struct Large {
    pub names: &'static [&'static str],
    config: fn() -> LlamaConfig,
    dtype: fn(&str) -> Dtype,
    length: Length,
}

/// The comparisons with other programs have the same shapes (`tests/src/bench/compare`).
pub(super) const LARGE: &[Large] = &[
    Large {
        names: &["prefill/110M/Q4_0", "decode/110M/Q4_0", "decode/110M/Q4_0/2048"],
        config: small_config,
        dtype: |_| Dtype::Q4_0,
        length: Length { prefill: 128, decode: 16, repetitions: 3 },
    },
    Large {
        names: &["prefill/1.1B/Q4_0", "decode/1.1B/Q4_0", "decode/1.1B/Q4_0/2048"],
        config: large_config,
        dtype: |_| Dtype::Q4_0,
        length: Length { prefill: 128, decode: 8, repetitions: 3 },
    },
    Large {
        names: &["prefill/1.1B/Q4_K_M", "decode/1.1B/Q4_K_M"],
        config: large_config,
        dtype: large_q4_k_m,
        length: Length { prefill: 32, decode: 8, repetitions: 3 },
    },
    Large {
        names: &["prefill/1.1B/Q8_0", "decode/1.1B/Q8_0"],
        config: large_config,
        dtype: |_| Dtype::Q8_0,
        length: Length { prefill: 32, decode: 8, repetitions: 3 },
    },
];

/// Tokens of a run: those that are prefilled at once, and those that are then decoded one by one.
struct Length {
    prefill: usize,
    decode: usize,
    repetitions: usize,
}

/// Tokens before those that are decoded, where a row does not say how many.
const EARLY: usize = 64;
/// The whole context of the models here.
const WHOLE: usize = 2048;

pub(super) async fn demo<B: Backend>(out: &mut Out<'_, B>, file: Option<Vec<u8>>) -> Result<()> {
    if !DEMO.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let backend = &out.place.backend;
    let (llama, weights) = match file {
        Some(file) => {
            let note = format!("models/demo/llm.gguf, {:.0} MB", file.len() as f64 / 1e6);
            (load_llama(backend, file).await?.0, note)
        }
        None => random(backend, &demo_config(), |_| Dtype::F32).await?,
    };
    measure(out, DEMO, &llama, &weights, &Length { prefill: 64, decode: 48, repetitions: 5 }).await
}

/// A Llama with made-up weights.
pub(super) async fn large<B: Backend>(out: &mut Out<'_, B>, of: &Large) -> Result<()> {
    if !of.names.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let (llama, weights) = random(&out.place.backend, &(of.config)(), of.dtype).await?;
    measure(out, of.names, &llama, &weights, &of.length).await
}

/// The shape of the demo's language model, for want of the bundle.
fn demo_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 256,
        intermediate_size: 688,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 64,
        vocab_size: 2048,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: RopeLayout::Interleaved,
        tie_word_embeddings: true,
    }
}

/// The shape of Karpathy's stories110M, which is that of GPT-2's smallest.
pub(super) fn small_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 768,
        intermediate_size: 2048,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        num_key_value_heads: 12,
        vocab_size: 32_000,
        max_position_embeddings: WHOLE,
        tie_word_embeddings: false,
        ..demo_config()
    }
}

/// TinyLlama's shape (Zhang et al., 2024), about the largest that a browser holds.
fn large_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 2048,
        intermediate_size: 5632,
        num_hidden_layers: LARGE_LAYERS,
        num_attention_heads: 32,
        num_key_value_heads: 4,
        vocab_size: 32_000,
        max_position_embeddings: WHOLE,
        tie_word_embeddings: false,
        ..demo_config()
    }
}

const LARGE_LAYERS: usize = 22;

/// LLaMA-2-7B's shape (Touvron et al., 2023), with a short context.
pub fn seven_b_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        head_dim: 128,
        vocab_size: 32_000,
        max_position_embeddings: 512,
        tie_word_embeddings: false,
        ..demo_config()
    }
}

/// The `steps` ids that follow `ids` (at least one), greedily; `each` hears of every one.
///
/// # Errors
/// Ids that the model does not have; what the backend answers, and logits that are not finite.
pub async fn greedy<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    ids: &[u32],
    steps: usize,
    mut each: impl FnMut(),
) -> Result<Vec<u32>> {
    let mut cache = KvCache::new(backend, llama.config(), 1, ids.len() + steps)?;
    let (mut next, mut out) = (ids.to_vec(), Vec::new());
    for _ in 0..steps {
        let x = backend.reshape(&llama.embed(backend, &next)?, &[1, next.len(), llama.config().hidden_size])?;
        let hidden = llama.forward(backend, &x, Some(&mut cache))?;
        let last = backend.narrow(&hidden, 1, next.len() - 1, 1)?;
        let logits = backend.read(&llama.logits(backend, &last)?).await?;
        finite(&logits)?;
        next = vec![argmax(&logits)?];
        out.extend(&next);
        each();
    }
    Ok(out)
}

pub(super) fn large_q4_k_m(name: &str) -> Dtype {
    q4_k_m_type(name, LARGE_LAYERS)
}

/// llama.cpp's mixture "Q4_K_M": more bits for the head and, in the first, the last and every third of `layers`, for
/// values and the MLP's way down.
pub fn q4_k_m_type(name: &str, layers: usize) -> Dtype {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let eighth = layers / 8;
    match layer {
        None if name == "lm_head.weight" => Dtype::Q6_K,
        Some(i)
            if (name.contains("v_proj") || name.contains("down_proj"))
                && (i < eighth || i >= 7 * layers / 8 || (i - eighth) % 3 == 2) =>
        {
            Dtype::Q6_K
        }
        _ => Dtype::Q4_K,
    }
}

pub(super) async fn random<B: Backend>(
    backend: &B,
    config: &LlamaConfig,
    dtype: fn(&str) -> Dtype,
) -> Result<(Llama<B>, String)> {
    let weights = Random::new(backend, dtype);
    let llama = Llama::load(&weights, config).await?;
    Ok((llama, format!("random weights, {:.0} MB", weights.bytes() as f64 / 1e6)))
}

/// Rows of `names`: prefill, decode, and decode at the context's end where there is a third.
async fn measure<B: Backend>(
    out: &mut Out<'_, B>,
    names: &[&str],
    llama: &Llama<B>,
    weights: &str,
    length: &Length,
) -> Result<()> {
    let &Length { mut prefill, mut decode, repetitions } = length;
    if out.place.short {
        (prefill, decode) = ((prefill / 8).max(4), (decode / 8).max(2));
    }
    let (backend, config) = (&out.place.backend, llama.config());
    let vocab = config.vocab_size as u32;
    let prompt: Vec<u32> = (0..prefill as u32).map(|i| (i * 7919 + 13) % vocab).collect();
    let early = EARLY.min(config.max_position_embeddings - decode);
    let capacity = if names.len() > 2 { WHOLE } else { prefill.max(early + decode) };
    let cache = RefCell::new(KvCache::new(backend, config, 1, capacity)?);
    // Logits after `ids`, which continue the first `seen` tokens.
    let step = async |ids: &[u32], seen: usize| -> Result<Vec<f32>> {
        let hidden = {
            let mut cache = cache.borrow_mut();
            cache.assume(seen);
            let x = backend.reshape(&llama.embed(backend, ids)?, &[1, ids.len(), config.hidden_size])?;
            llama.forward(backend, &x, Some(&mut cache))?
        };
        let last = backend.narrow(&hidden, 1, ids.len() - 1, 1)?;
        let logits = backend.read(&llama.logits(backend, &last)?).await?;
        finite(&logits)?;
        Ok(logits)
    };
    if out.wants(names[0]) {
        let seconds = out.median(repetitions, async || step(&prompt, 0).await.map(drop)).await?;
        out.row(names[0], prefill as f64 / seconds, "tokens/s", &format!("{weights}; {prefill} tokens at once"))?;
    }
    for (name, seen) in names[1..].iter().zip([early, WHOLE - decode]) {
        if !out.wants(name) {
            continue;
        }
        let decoding = async || {
            let mut id = prompt[0];
            for i in 0..decode {
                id = argmax(&step(&[id], seen + i).await?)?;
            }
            Ok(())
        };
        let seconds = out.median(repetitions, decoding).await?;
        let note = format!("{weights}; greedy, {decode} tokens after {seen}");
        out.row(name, decode as f64 / seconds, "tokens/s", &note)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_half_of_the_layers_get_more_bits() {
        let count = |part: &str| {
            let name = |i| format!("model.layers.{i}.{part}.weight");
            (0..LARGE_LAYERS).filter(|&i| large_q4_k_m(&name(i)) == Dtype::Q6_K).count()
        };
        assert_eq!([count("self_attn.v_proj"), count("mlp.down_proj"), count("mlp.up_proj")], [10, 10, 0]);
        assert_eq!(large_q4_k_m("lm_head.weight"), Dtype::Q6_K);
        assert_eq!(large_q4_k_m("model.embed_tokens.weight"), Dtype::Q4_K);
    }
}

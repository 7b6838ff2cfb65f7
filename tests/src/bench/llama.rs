//! Prefill and decoding of language models.

use std::cell::RefCell;

use pollster::block_on;
use rscapret::{
    Result,
    backend::{Backend, Candle, RopeLayout},
    caption::sampling::argmax,
    llama::{KvCache, Llama, LlamaConfig, RopeScaling, load_llama},
    weights::Dtype,
};

use super::{Row, Wanted, demo_file, finite, median, random::Random, row};

pub(super) const DEMO: &[&str] = &["prefill/demo", "decode/demo"];
pub(super) const Q4_K_M: &[&str] = &["prefill/1.1B/Q4_K_M", "decode/1.1B/Q4_K_M"];
pub(super) const Q8_0: &[&str] = &["prefill/1.1B/Q8_0", "decode/1.1B/Q8_0"];

/// Tokens of a run: those that are prefilled at once, and those that are then decoded one by one.
struct Length {
    prefill: usize,
    decode: usize,
    repetitions: usize,
}

pub(super) fn demo(wanted: &Wanted) -> Result<Vec<Row>> {
    let backend = Candle::cpu();
    let (llama, weights) = match demo_file("llm.gguf")? {
        Some(file) => {
            let note = format!("models/demo/llm.gguf, {:.0} MB", file.len() as f64 / 1e6);
            (block_on(load_llama(&backend, file))?.0, note)
        }
        None => random(&backend, &demo_config(), |_| Dtype::F32)?,
    };
    measure(wanted, DEMO, &backend, &llama, &weights, &Length { prefill: 64, decode: 48, repetitions: 5 })
}

pub(super) fn q4_k_m(wanted: &Wanted) -> Result<Vec<Row>> {
    large(wanted, Q4_K_M, q4_k_m_type)
}

pub(super) fn q8_0(wanted: &Wanted) -> Result<Vec<Row>> {
    large(wanted, Q8_0, |_| Dtype::Q8_0)
}

fn large(wanted: &Wanted, names: &[&str], dtype: fn(&str) -> Dtype) -> Result<Vec<Row>> {
    let backend = Candle::cpu();
    let (llama, weights) = random(&backend, &large_config(), dtype)?;
    measure(wanted, names, &backend, &llama, &weights, &Length { prefill: 32, decode: 8, repetitions: 3 })
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

/// TinyLlama's shape (Zhang et al., 2024), about the largest that a browser holds.
fn large_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 2048,
        intermediate_size: 5632,
        num_hidden_layers: LARGE_LAYERS,
        num_attention_heads: 32,
        num_key_value_heads: 4,
        vocab_size: 32_000,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        ..demo_config()
    }
}

const LARGE_LAYERS: usize = 22;

/// llama.cpp's mixture "Q4_K_M": more bits for the head and, in the first, the last and every third layer, for
/// values and the MLP's way down.
fn q4_k_m_type(name: &str) -> Dtype {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    let eighth = LARGE_LAYERS / 8;
    match layer {
        None if name == "lm_head.weight" => Dtype::Q6_K,
        Some(i)
            if (name.contains("v_proj") || name.contains("down_proj"))
                && (i < eighth || i >= 7 * LARGE_LAYERS / 8 || (i - eighth) % 3 == 2) =>
        {
            Dtype::Q6_K
        }
        _ => Dtype::Q4_K,
    }
}

fn random(backend: &Candle, config: &LlamaConfig, dtype: fn(&str) -> Dtype) -> Result<(Llama<Candle>, String)> {
    let weights = Random::new(backend, dtype);
    let llama = block_on(Llama::load(&weights, config))?;
    Ok((llama, format!("random weights, {:.0} MB", weights.bytes() as f64 / 1e6)))
}

/// Rows of `names`: prefill and decode.
fn measure(
    wanted: &Wanted,
    names: &[&str],
    backend: &Candle,
    llama: &Llama<Candle>,
    weights: &str,
    length: &Length,
) -> Result<Vec<Row>> {
    let &Length { prefill, decode, repetitions } = length;
    let config = llama.config();
    let vocab = config.vocab_size as u32;
    let prompt: Vec<u32> = (0..prefill as u32).map(|i| (i * 7919 + 13) % vocab).collect();
    let cache = RefCell::new(KvCache::new(backend, config, 1, prefill + decode)?);
    // Logits after `ids`, which continue the first `seen` tokens.
    let step = |ids: &[u32], seen: usize| -> Result<Vec<f32>> {
        let mut cache = cache.borrow_mut();
        cache.truncate(seen);
        let x = backend.reshape(&llama.embed(backend, ids)?, &[1, ids.len(), config.hidden_size])?;
        let hidden = llama.forward(backend, &x, Some(&mut cache))?;
        let last = backend.narrow(&hidden, 1, ids.len() - 1, 1)?;
        let logits = block_on(backend.read(&llama.logits(backend, &last)?))?;
        finite(&logits)?;
        Ok(logits)
    };
    let mut rows = Vec::new();
    wanted.measure(&mut rows, names[0], || {
        let seconds = median(repetitions, || step(&prompt, 0).map(drop))?;
        Ok(row(prefill as f64 / seconds, "tokens/s", format!("{weights}; {prefill} tokens at once")))
    })?;
    wanted.measure(&mut rows, names[1], || {
        let first = argmax(&step(&prompt, 0)?)?;
        let seconds = median(repetitions, || {
            let mut id = first;
            for i in 0..decode {
                id = argmax(&step(&[id], prefill + i)?)?;
            }
            Ok(())
        })?;
        Ok(row(decode as f64 / seconds, "tokens/s", format!("{weights}; greedy, {decode} tokens after {prefill}")))
    })?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_half_of_the_layers_get_more_bits() {
        let count = |part: &str| {
            let name = |i| format!("model.layers.{i}.{part}.weight");
            (0..LARGE_LAYERS).filter(|&i| q4_k_m_type(&name(i)) == Dtype::Q6_K).count()
        };
        assert_eq!([count("self_attn.v_proj"), count("mlp.down_proj"), count("mlp.up_proj")], [10, 10, 0]);
        assert_eq!(q4_k_m_type("lm_head.weight"), Dtype::Q6_K);
        assert_eq!(q4_k_m_type("model.embed_tokens.weight"), Dtype::Q4_K);
    }
}

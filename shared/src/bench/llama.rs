//! Prefill and decoding of language models.

use std::cell::RefCell;

use super::{Out, finite, random::Random};
use crate::{
    backend::{Backend, Candle, RopeLayout},
    error::{Error, Result},
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
    /// Left out where a program plays the GPU: its products are measured one by one, too.
    more: bool,
    /// More than the memory of wasm holds.
    huge: bool,
}

/// The comparisons with other programs have the same shapes (`tests/src/bench/compare`).
pub(super) const LARGE: &[Large] = &[
    Large {
        names: &["prefill/110M/Q4_0", "decode/110M/Q4_0", "decode/110M/Q4_0/2048"],
        config: small_config,
        dtype: |_| Dtype::Q4_0,
        length: Length { prefill: 128, decode: 16, repetitions: 3 },
        more: false,
        huge: false,
    },
    Large {
        names: &["prefill/1.1B/Q4_0", "decode/1.1B/Q4_0", "decode/1.1B/Q4_0/2048"],
        config: large_config,
        dtype: |_| Dtype::Q4_0,
        length: Length { prefill: 128, decode: 8, repetitions: 3 },
        more: false,
        huge: false,
    },
    Large {
        names: &["prefill/1.1B/Q4_K_M", "decode/1.1B/Q4_K_M"],
        config: large_config,
        dtype: large_q4_k_m,
        length: Length { prefill: 128, decode: 8, repetitions: 3 },
        more: true,
        huge: false,
    },
    Large {
        names: &["prefill/1.1B/Q8_0", "decode/1.1B/Q8_0"],
        config: large_config,
        dtype: |_| Dtype::Q8_0,
        length: Length { prefill: 128, decode: 8, repetitions: 3 },
        more: true,
        huge: false,
    },
    Large {
        names: &["prefill/7B/Q4_0", "decode/7B/Q4_0"],
        config: seven_b_config,
        dtype: |_| Dtype::Q4_0,
        length: Length { prefill: 128, decode: 8, repetitions: 3 },
        more: true,
        huge: true,
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

/// The share of positions of a text that the processor wrote in which a GPU, fed that text, finds the same token likeliest.
pub(super) const FORCED: &str = "forced/1.1B/Q4_0";
/// Positions that are compared; where a program plays the GPU, each takes seconds.
const POSITIONS: usize = 100;
const FEW_POSITIONS: usize = 16;
/// Two tokens whose logits are no further apart, in standard deviations of all logits, are a near tie: the processor rounds
/// activations to 8 bits, a GPU does not, and weights that are made up have no favourites.
const NEAR_TIE: f32 = 0.1;

/// Measures [`FORCED`]; near ties are named.
///
/// # Errors
/// Fewer than 99 of 100 positions agree, near ties left out; what the backends answer.
pub(super) async fn forced<B: Backend>(out: &mut Out<'_, B>) -> Result<()> {
    if !out.wants(FORCED) {
        return Ok(());
    }
    let (config, begin) = (large_config(), [1, 15_043, 3_186, 29_892, 920]);
    let positions = if out.place.short { FEW_POSITIONS } else { POSITIONS };
    let ids = {
        let cpu = Candle::cpu();
        let (llama, _) = random(&cpu, &config, |_| Dtype::Q4_0).await?;
        greedy(&cpu, &llama, &begin, positions, || {}).await?
    };
    let backend = &out.place.backend;
    let (llama, _) = random(backend, &config, |_| Dtype::Q4_0).await?;
    let cache = RefCell::new(KvCache::new(backend, &config, 1, begin.len() + positions)?);
    let decoding = Decoding::new(backend, &llama, &cache)?;
    let (mut agree, mut near, mut apart) = (0, Vec::new(), Vec::new());
    let mut logits = decoding.logits(&decoding.embed(&begin)?)?;
    for (i, &id) in ids.iter().enumerate() {
        let found = backend.argmax(&logits, &decoding.mask).await?;
        if found == [id] {
            agree += 1;
        } else {
            let gap = gap(&backend.read(&logits).await?, id);
            let named = format!("at {i} {id}, on the GPU {found:?} by {gap:.3} deviations");
            if gap <= NEAR_TIE { near.push(named) } else { apart.push(named) }
        }
        if i + 1 < ids.len() {
            logits = decoding.logits(&decoding.embed(&[id])?)?;
        }
    }
    if 100 * apart.len() > positions {
        return Err(Error::Backend(format!(
            "{FORCED}: expected 99 % of the CPU's {positions} tokens but found {agree}: {}",
            apart.join("; ")
        )));
    }
    let mut note = format!("{positions} tokens that the CPU chose after {}, one by one", begin.len());
    for (what, named) in [("near ties", near), ("apart", apart)] {
        if !named.is_empty() {
            note += &format!("; {what}: {}", named.join("; "));
        }
    }
    out.row(FORCED, 100.0 * agree as f64 / positions as f64, "%", &note)
}

/// How far a token's logit stands below the best one, in standard deviations of all.
fn gap(logits: &[f32], id: u32) -> f32 {
    let n = logits.len().max(1) as f32;
    let mean = logits.iter().sum::<f32>() / n;
    let deviation = (logits.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (best - logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)) / deviation
}

pub(super) async fn demo<B: Backend>(out: &mut Out<'_, B>, file: Option<Vec<u8>>) -> Result<()> {
    if !DEMO.iter().any(|name| out.wants(name)) {
        return Ok(());
    }
    let backend = &out.place.backend;
    let (llama, weights) = match file {
        Some(file) => {
            let (bytes, note) = (file.len() as u64, format!("models/demo/llm.gguf, {:.0} MB", file.len() as f64 / 1e6));
            // Its embedding rows are its head, too: a token reads all of it.
            (load_llama(backend, file).await?.0, Weights { note, read: bytes })
        }
        None => random(backend, &demo_config(), |_| Dtype::F32).await?,
    };
    measure(out, DEMO, &llama, &weights, &Length { prefill: 64, decode: 48, repetitions: 5 }).await
}

/// A Llama with made-up weights.
pub(super) async fn large<B: Backend>(out: &mut Out<'_, B>, of: &Large) -> Result<()> {
    let left_out = (out.place.short && of.more) || (of.huge && !out.place.room);
    if left_out || !of.names.iter().any(|name| out.wants(name)) {
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
pub fn large_config() -> LlamaConfig {
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
    each: impl FnMut(),
) -> Result<Vec<u32>> {
    let cache = RefCell::new(KvCache::new(backend, llama.config(), 1, ids.len() + steps)?);
    Decoding::new(backend, llama, &cache)?.greedy(ids, steps, each).await
}

/// Decoding as captions are decoded: a device that chooses tokens by itself gets its next step before it is asked for the
/// token of this one.
struct Decoding<'a, B: Backend> {
    backend: &'a B,
    llama: &'a Llama<B>,
    cache: &'a RefCell<KvCache<B>>,
    /// All tokens may be chosen.
    mask: B::Tensor,
}

impl<'a, B: Backend> Decoding<'a, B> {
    fn new(backend: &'a B, llama: &'a Llama<B>, cache: &'a RefCell<KvCache<B>>) -> Result<Self> {
        let vocab = llama.config().vocab_size;
        Ok(Decoding { backend, llama, cache, mask: backend.upload(&vec![0.0; vocab], &[vocab])? })
    }

    fn embed(&self, ids: &[u32]) -> Result<B::Tensor> {
        self.llama.embed(self.backend, ids)
    }

    /// Logits (1, V) after rows (n, D) of input embeddings, which continue what the cache holds.
    fn logits(&self, rows: &B::Tensor) -> Result<B::Tensor> {
        let (backend, width) = (self.backend, self.llama.config().hidden_size);
        let n = backend.shape(rows)[0];
        let x = backend.reshape(rows, &[1, n, width])?;
        let hidden = self.llama.forward(backend, &x, Some(&mut *self.cache.borrow_mut()))?;
        let last = backend.narrow(&hidden, 1, n - 1, 1)?;
        self.llama.logits(backend, &backend.reshape(&last, &[1, width])?)
    }

    /// Reads `ids` and chooses `steps` tokens after them.
    async fn greedy(&self, ids: &[u32], steps: usize, mut each: impl FnMut()) -> Result<Vec<u32>> {
        let (backend, mut out) = (self.backend, Vec::with_capacity(steps));
        let mut logits = self.logits(&self.embed(ids)?)?;
        let mut place = None;
        while out.len() < steps {
            let goes_on = out.len() + 1 < steps;
            match backend.choose(&logits, &self.mask, place.as_ref())? {
                Some(chosen) => {
                    if goes_on {
                        logits = self.llama.decode(backend, &chosen.ids, &mut self.cache.borrow_mut())?;
                    }
                    place = Some(chosen.ids);
                    out.extend(chosen.answer.await?);
                }
                None => {
                    let ids = backend.argmax(&logits, &self.mask).await?;
                    if goes_on {
                        logits = self.logits(&self.embed(&ids)?)?;
                    }
                    out.extend(ids);
                }
            }
            each();
        }
        finite(&backend.read(&logits).await?)?;
        Ok(out)
    }
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

/// What is told of a model's weights.
pub(super) struct Weights {
    note: String,
    /// Bytes that each token reads.
    read: u64,
}

pub(super) async fn random<B: Backend>(
    backend: &B,
    config: &LlamaConfig,
    dtype: fn(&str) -> Dtype,
) -> Result<(Llama<B>, Weights)> {
    let weights = Random::new(backend, dtype);
    let llama = Llama::load(&weights, config).await?;
    let note = format!("random weights, {:.0} MB", weights.bytes() as f64 / 1e6);
    // Of a table of its own, one row.
    let table = [config.vocab_size, config.hidden_size];
    let table = dtype("model.embed_tokens.weight").bytes_of(&table).filter(|_| !config.tie_word_embeddings);
    Ok((llama, Weights { note, read: weights.bytes() - table.unwrap_or_default() }))
}

/// Rows of `names`: prefill, decode, and decode at the context's end where there is a third.
async fn measure<B: Backend>(
    out: &mut Out<'_, B>,
    names: &[&str],
    llama: &Llama<B>,
    Weights { note: weights, read }: &Weights,
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
    let decoding = Decoding::new(backend, llama, &cache)?;
    if out.wants(names[0]) {
        let prefilling = async || {
            cache.borrow_mut().assume(0);
            finite(&backend.read(&decoding.logits(&decoding.embed(&prompt)?)?).await?)
        };
        let seconds = out.median(repetitions, prefilling).await?;
        out.row(names[0], prefill as f64 / seconds, "tokens/s", &format!("{weights}; {prefill} tokens at once"))?;
    }
    for (name, seen) in names[1..].iter().zip([early, WHOLE - decode]) {
        if !out.wants(name) {
            continue;
        }
        let continuing = async || {
            cache.borrow_mut().assume(seen);
            decoding.greedy(&prompt[..1], decode, || {}).await.map(drop)
        };
        let seconds = out.median(repetitions, continuing).await?;
        let speed = decode as f64 / seconds;
        // Keys and values are f32.
        let row = 2 * 4 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers;
        let cached = (seen * row) as u64;
        let note = format!(
            "{weights}; greedy, {decode} tokens after {seen}, whose keys and values are {:.0} MB; {:.1} GB/s of both",
            cached as f64 / 1e6,
            (read + cached) as f64 * speed / 1e9
        );
        out.row(name, speed, "tokens/s", &note)?;
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

//! Llamas to GGUF files that llama.cpp loads unchanged.

use serde_json::Value;

use super::{
    LlamaConfig,
    checkpoint::head_is_embedding,
    tokenizer::{GgufVocab, Tokenizer},
};
use crate::{
    backend::RopeLayout,
    error::{Error, Result},
    weights::{
        Dtype, RawTensor, TensorSource,
        gguf::{Converter, GgufWriter, file_type},
        quant,
    },
};

// llama.cpp's numbers of token types (`tokenizer.ggml.token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// A checkpoint, its tensors by Hugging Face's names, as GGUF with its tokenizer. Matrices become `dtype` (F32, F16,
/// BF16, Q8_0 or Q4_0), norms F32; q and k are permuted to the order that llama.cpp rotates. Rows of the embedding table
/// that have no token get names that no text has.
///
/// # Errors
/// A missing, extra or misshapen tensor; [`Error::Config`] if the vocabulary has more tokens than the model;
/// [`Error::Unsupported`] for other types.
pub async fn llama_gguf(
    name: &str,
    config: &LlamaConfig,
    vocab: &GgufVocab,
    tensors: &impl TensorSource,
    dtype: Dtype,
) -> Result<GgufWriter> {
    config.check()?;
    let mut out = Converter::new(tensors, dtype);
    let file = out.writer();
    file.metadata("general.architecture", "llama")?.metadata("general.name", name)?;
    file.metadata("general.file_type", file_type(dtype)?)?;
    file.metadata("general.quantization_version", 2u32)?;
    for (key, value) in config.to_gguf()?.iter() {
        file.metadata(key, value.clone())?;
    }
    put_vocab(file, vocab, config.vocab_size)?;
    if let Some(divisors) = config.frequency_divisors() {
        let bytes = quant::quantize(&divisors, Dtype::F32)?;
        file.tensor("rope_freqs.weight", RawTensor { shape: vec![divisors.len()], dtype: Dtype::F32, bytes })?;
    }

    for (name, shape) in config.tensors() {
        let rotated = name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight");
        let arrange = (rotated && config.rope_layout == RopeLayout::Half)
            .then_some(|w: Vec<f32>| interleave_halves(&w, config.head_dim, config.hidden_size));
        out.put_arranged(&name, &shape, arrange).await?;
    }
    let head = "lm_head.weight";
    let tied_copy = config.tie_word_embeddings && out.has(head);
    if tied_copy {
        head_is_embedding(tensors).await?;
    }
    out.finish(|name| !(name.ends_with(".rotary_emb.inv_freq") || tied_copy && name == head))
}

/// Rows (heads K, width) whose heads rotate pairs (i, i + K / 2), brought into the order in which pairs are neighbours:
/// row 2 i + h of a head is row h K / 2 + i of the checkpoint.
fn interleave_halves(w: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let rows = w.chunks_exact((head_dim * width).max(1)).flat_map(|head| {
        (0..head_dim).flat_map(move |row| {
            let from = (row % 2 * half + row / 2) * width;
            &head[from..from + width]
        })
    });
    rows.copied().collect()
}

/// `tokenizer.ggml.*`, with `rows` tokens.
fn put_vocab(file: &mut GgufWriter, vocab: &GgufVocab, rows: usize) -> Result<()> {
    let count = vocab.tokens.len();
    let Some(spare) = rows.checked_sub(count) else {
        return Err(Error::Config(format!("expected at most {rows} tokens, the model's, but found {count}")));
    };
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    file.metadata(key("model"), vocab.model.as_str())?;
    if let Some(pre) = &vocab.pre {
        file.metadata(key("pre"), pre.as_str())?;
    }
    let mut tokens = vocab.tokens.clone();
    tokens.extend((0..spare).map(|i| format!("[PAD{}]", count + i)));
    file.metadata(key("tokens"), tokens)?;
    if let Some(mut scores) = vocab.scores.clone() {
        scores.resize(rows, -1000.0);
        file.metadata(key("scores"), scores)?;
    }
    let mut types = vocab.token_types.clone().unwrap_or_else(|| vec![NORMAL; count]);
    types.resize(rows, UNUSED);
    file.metadata(key("token_type"), types)?;
    if let Some(merges) = &vocab.merges {
        file.metadata(key("merges"), merges.clone())?;
    }
    for (name, id) in [("bos_token_id", vocab.bos), ("eos_token_id", vocab.eos), ("unknown_token_id", vocab.unk)] {
        if let Some(id) = id {
            file.metadata(key(name), id)?;
        }
    }
    let flags = [
        ("add_bos_token", vocab.add_bos),
        ("add_eos_token", vocab.add_eos),
        ("add_space_prefix", vocab.add_space_prefix),
    ];
    for (name, flag) in flags {
        if let Some(flag) = flag {
            file.metadata(key(name), flag)?;
        }
    }
    Ok(())
}

/// The GGUF vocabulary of a `tokenizer.json` with byte-level BPE and GPT-2's cuts, such as the trainer makes.
///
/// # Errors
/// [`Error::Malformed`] for a file that is no tokenizer, [`Error::Unsupported`] for other kinds than byte-level BPE cut
/// as GPT-2's: another pre-tokenizer would read texts otherwise than the model was trained on.
pub fn vocab_from_json(bytes: &[u8]) -> Result<GgufVocab> {
    let tokenizer = Tokenizer::from_json(bytes)?;
    let json: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::Malformed(format!("expected a tokenizer.json but found: {e}")))?;
    let pre = &json["pre_tokenizer"];
    // The crate's own defaults: cut by GPT-2's expression, no space put before.
    let gpt2 = pre["type"] == "ByteLevel" && pre["use_regex"] != false && pre["add_prefix_space"] == false;
    if !gpt2 || !json["normalizer"].is_null() {
        return Err(Error::Unsupported(format!(
            "expected a pre-tokenizer `ByteLevel` with GPT-2's cuts and no normalizer but found {pre}"
        )));
    }
    let count = tokenizer.vocab_size();
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; count];
    let mut set = |text: &str, id: &Value, kind: i32| {
        let at = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < count);
        let at = at.ok_or_else(|| Error::Malformed(format!("expected `{text}` to have an id but found {id}")))?;
        tokens[at] = text.to_string();
        types[at] = kind;
        Ok::<(), Error>(())
    };
    for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        set(text, id, NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        set(token["content"].as_str().unwrap_or_default(), &token["id"], kind)?;
    }
    let merges = json["model"]["merges"].as_array().into_iter().flatten().map(|merge| match merge {
        Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        both => both.as_str().unwrap_or_default().to_string(),
    });
    let begins =
        |id: Option<u32>| Ok::<bool, Error>(id.is_some() && tokenizer.encode("a", true)?.first().copied() == id);
    Ok(GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        merges: Some(merges.collect()),
        token_types: Some(types),
        tokens,
        bos: tokenizer.bos(),
        eos: tokenizer.eos(),
        add_bos: Some(begins(tokenizer.bos())?),
        ..GgufVocab::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Backend, Candle},
        llama::{RopeScaling, load_llama, load_llama_checkpoint},
        weights::testing::{nmse, random_checkpoint, tiny_tokenizer_json},
    };

    fn config() -> LlamaConfig {
        LlamaConfig {
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size: 300,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_layout: RopeLayout::Half,
            tie_word_embeddings: false,
        }
    }

    async fn logits(llama: &crate::llama::Llama<Candle>) -> Vec<f32> {
        let backend = Candle::cpu();
        let x = llama.embed(&backend, &[1, 7, 42, 0, 255, 7]).unwrap();
        let x = backend.reshape(&x, &[1, 6, 64]).unwrap();
        let hidden = llama.forward(&backend, &x, None).unwrap();
        backend.read(&llama.logits(&backend, &hidden).unwrap()).await.unwrap()
    }

    /// Logits of the checkpoint and of its GGUF in `dtype`.
    fn both(config: &LlamaConfig, dtype: Dtype) -> (Vec<f32>, Vec<f32>) {
        pollster::block_on(async {
            let backend = Candle::cpu();
            let source = random_checkpoint(1, &config.tensors()).await;
            let json = serde_json::to_vec(&config.to_json().unwrap()).unwrap();
            let (llama, _) = load_llama_checkpoint(&backend, &json, &source, &tiny_tokenizer_json()).await.unwrap();
            let vocab = vocab_from_json(&tiny_tokenizer_json()).unwrap();
            let file = llama_gguf("tiny", config, &vocab, &source, dtype).await.unwrap().to_bytes().unwrap();
            let (read, tokenizer) = load_llama(&backend, file).await.unwrap();
            assert_eq!(read.config().rope_layout, RopeLayout::Interleaved);
            assert_eq!(read.config().tie_word_embeddings, config.tie_word_embeddings);
            assert_eq!(tokenizer.vocab_size(), config.vocab_size);
            (logits(&llama).await, logits(&read).await)
        })
    }

    #[test]
    fn a_gguf_computes_what_its_checkpoint_does() {
        for tied in [false, true] {
            let config = LlamaConfig { tie_word_embeddings: tied, ..config() };
            let (ours, theirs) = both(&config, Dtype::F32);
            assert!(nmse(&theirs, &ours) < 1e-10, "{}", nmse(&theirs, &ours));
        }
    }

    #[test]
    fn quantised_files_stay_near() {
        for (dtype, bound) in [(Dtype::F16, 1e-5), (Dtype::Q8_0, 1e-3)] {
            let (ours, theirs) = both(&config(), dtype);
            let error = nmse(&theirs, &ours);
            assert!(error > 0.0 && error < bound, "{dtype}: {error}");
        }
    }

    #[test]
    fn rows_of_a_head_are_interleaved() {
        // Two heads of four rows of one number.
        let w: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(interleave_halves(&w, 4, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(interleave_halves(&w, 4, 2), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    }

    #[test]
    fn the_vocabulary_reads_as_its_json() {
        let json = tiny_tokenizer_json();
        let (theirs, ours) =
            (Tokenizer::from_json(&json).unwrap(), Tokenizer::from_vocab(vocab_from_json(&json).unwrap()).unwrap());
        assert_eq!((ours.bos(), ours.eos(), ours.vocab_size()), (theirs.bos(), theirs.eos(), theirs.vocab_size()));
        for text in ["a plane  is here.", "caf\u{e9} \u{1f6f0} 12'll\n", "", "<|endoftext|>", " the the"] {
            let ids = theirs.encode(text, false).unwrap();
            assert_eq!(ours.encode(text, false).unwrap(), ids, "{text}");
            assert_eq!(ours.decode(&ids, true).unwrap(), text);
        }
        assert!(theirs.encode("the", false).unwrap().len() < 3);
    }

    #[test]
    fn other_pre_tokenizers_are_refused() {
        let mut json: Value = serde_json::from_slice(&tiny_tokenizer_json()).unwrap();
        json["pre_tokenizer"]["add_prefix_space"] = true.into();
        let error = vocab_from_json(&serde_json::to_vec(&json).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }

    #[test]
    fn nothing_is_left_over_in_silence() {
        pollster::block_on(async {
            let (backend, tokenizer) = (Candle::cpu(), tiny_tokenizer_json());
            let tied = LlamaConfig { tie_word_embeddings: true, ..config() };
            let json = serde_json::to_vec(&tied.to_json().unwrap()).unwrap();
            let mut names = tied.tensors();
            names.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![16]));
            let source = random_checkpoint(1, &names).await;
            load_llama_checkpoint(&backend, &json, &source, &tokenizer).await.unwrap();

            names.push(("lm_head.weight".into(), vec![300, 64]));
            let source = random_checkpoint(1, &names).await;
            let error = load_llama_checkpoint(&backend, &json, &source, &tokenizer).await.err().unwrap();
            assert!(error.to_string().contains("to which config.json ties it"), "{error}");
            let vocab = vocab_from_json(&tokenizer).unwrap();
            assert!(llama_gguf("tiny", &tied, &vocab, &source, Dtype::F32).await.is_err());

            let mut names = config().tensors();
            names.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![128]));
            let source = random_checkpoint(1, &names).await;
            let error = llama_gguf("tiny", &config(), &vocab, &source, Dtype::F32).await.unwrap_err();
            assert!(matches!(error, Error::ExtraTensors(_)), "{error}");
            let untied = serde_json::to_vec(&config().to_json().unwrap()).unwrap();
            let error = load_llama_checkpoint(&backend, &untied, &source, &tokenizer).await.err().unwrap();
            assert!(matches!(error, Error::ExtraTensors(_)), "{error}");
        });
    }
}

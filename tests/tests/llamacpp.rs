//! GGUF files that rscapret writes, in llama.cpp: it loads them unchanged, reads prompts as the same ids and continues
//! them with the same text.

use std::{collections::BTreeMap, path::Path};

use pollster::block_on;
use rscapret::{
    backend::{Backend, Candle, RopeLayout},
    bundle::sha256_hex,
    caption::sampling::argmax,
    llama::{KvCache, LlamaConfig, RopeScaling, llama_gguf, load_llama, tokenizer::GgufVocab},
    weights::{
        Dtype, RawTensor,
        quant::quantize,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};
use rscapret_tests::tests_dir;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    sha256: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    tokens: Vec<u32>,
    continuation: Vec<u32>,
    text: String,
}

/// Compares `file` with what llama.cpp made of it: `golden/llamacpp/{name}.json`.
fn compare(name: &str, file: &Path) {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let json = std::fs::read(tests_dir().join("golden/llamacpp").join(format!("{name}.json"))).unwrap();
    let expected: Expected = serde_json::from_slice(&json).unwrap();
    let found = sha256_hex(&bytes);
    assert_eq!(found, expected.sha256, "{name}: another file; run tests/golden/make_llamacpp.py {name}");
    assert_eq!(expected.cases.len(), 3);

    let backend = Candle::cpu();
    let (llama, tokenizer) = block_on(load_llama(&backend, bytes)).unwrap();
    for case in &expected.cases {
        let prompt = &case.prompt;
        let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
        ids.extend(tokenizer.encode(prompt, false).unwrap());
        assert_eq!(ids, case.tokens, "{name}: {prompt}");
        assert!(case.continuation.len() >= 8, "{name}: {prompt}");
        let room = case.tokens.len() + case.continuation.len();
        let mut cache = KvCache::new(&backend, llama.config(), 1, room).unwrap();
        let (mut read, mut continuation) = (ids, Vec::new());
        while continuation.len() < case.continuation.len() {
            let x = llama.embed(&backend, &read).unwrap();
            let x = backend.reshape(&x, &[1, read.len(), llama.config().hidden_size]).unwrap();
            let hidden = llama.forward(&backend, &x, Some(&mut cache)).unwrap();
            let last = backend.narrow(&hidden, 1, read.len() - 1, 1).unwrap();
            let logits = block_on(backend.read(&llama.logits(&backend, &last).unwrap())).unwrap();
            let id = argmax(&logits).unwrap();
            continuation.push(id);
            read = vec![id];
        }
        assert_eq!(continuation, case.continuation, "{name}: {prompt}");
        let ids = [case.tokens.as_slice(), &continuation].concat();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), case.text, "{name}: {prompt}");
    }
}

// --- a tiny random model ------------------------------------------------------------------------------------------

/// All that the architecture offers at once: grouped queries, heads wider than D / H, Llama 3's rope, a head of its own,
/// more rows than tokens.
fn tiny_config() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        vocab_size: 272,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 48.0,
        },
        rope_layout: RopeLayout::Half,
        tie_word_embeddings: false,
    }
}

/// Byte-level BPE: end of text, the 256 bytes in GPT-2's spelling, five merges.
fn tiny_vocab() -> GgufVocab {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let bytes = (0..256).filter(|&b| printable(b)).chain((256..).take((0..256).filter(|&b| !printable(b)).count()));
    let mut tokens: Vec<String> = vec!["<|endoftext|>".into()];
    tokens.extend(bytes.map(|c| char::from_u32(c).unwrap().to_string()));
    tokens.extend(["re", "an", "\u{120}p", "\u{120}pl", "\u{120}plan"].map(String::from));
    let mut token_types = vec![1; tokens.len()];
    token_types[0] = 3;
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        merges: Some(["r e", "a n", "\u{120} p", "\u{120}p l", "\u{120}pl an"].map(String::from).to_vec()),
        tokens,
        token_types: Some(token_types),
        bos: Some(0),
        eos: Some(0),
        add_bos: Some(true),
        ..GgufVocab::default()
    }
}

/// Even between -1 and 1, the same on every machine.
fn noise(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

fn tiny_gguf() -> Vec<u8> {
    let (config, mut state) = (tiny_config(), 20);
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let (mean, spread) = match shape[..] {
            [_] => (1.0, 0.5),
            _ if name.contains("embed_tokens") => (0.0, 1.5),
            _ => (0.0, 2.5 / (shape[1] as f32).sqrt()),
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| mean + spread * noise(&mut state)).collect();
        (name, RawTensor { shape, dtype: Dtype::F32, bytes: quantize(&values, Dtype::F32).unwrap() })
    });
    let mut bytes = Vec::new();
    write_safetensors(&tensors.collect(), &BTreeMap::new(), &mut bytes).unwrap();
    let file = block_on(SafetensorsFile::open(bytes)).unwrap();
    block_on(llama_gguf("tiny", &config, &tiny_vocab(), &file, Dtype::F32)).unwrap().to_bytes().unwrap()
}

#[test]
fn a_tiny_model_is_what_llama_cpp_was_given_and_says_the_same() {
    let golden = tests_dir().join("golden/llamacpp/tiny.gguf");
    let written = tiny_gguf();
    if std::fs::read(&golden).ok().as_ref() != Some(&written) {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny.gguf");
        std::fs::write(&new, written).unwrap();
        panic!(
            "expected the writer to make {} but found {}\nif that was meant: copy it and run make_llamacpp.py tiny",
            golden.display(),
            new.display()
        );
    }
    compare("tiny", &golden);
}

#[test]
fn the_demos_language_model_says_the_same() {
    compare("demo", &tests_dir().join("../models/demo/llm.gguf"));
}

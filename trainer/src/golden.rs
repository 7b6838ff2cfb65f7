//! What tests read of tests/golden.

use std::path::Path;

use pollster::block_on;
use rscapret::{
    Candle,
    llama::{Llama, load_llama_weights},
    tokenizer::{GgufVocab, Tokenizer},
    weights::{TensorSource as _, quant, safetensors::SafetensorsFile},
};
use serde_json::Value;

use crate::optim::OptimConfig;

pub type File = SafetensorsFile<Vec<u8>>;

pub fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn open(name: &str) -> File {
    block_on(SafetensorsFile::open(read(name))).unwrap()
}

pub fn tensor(file: &File, name: &str) -> Vec<f32> {
    quant::dequantize(&block_on(file.fetch(name)).unwrap()).unwrap()
}

/// `bound` is a share of the largest value expected.
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], bound: f32) {
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let off = expected.iter().zip(found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(found.len() == expected.len() && off <= bound * largest.max(1e-6), "{name}: off by {off} of {largest}");
}

/// AdamW as a maker of golden files set it.
pub fn adamw(settings: &Value) -> OptimConfig {
    let setting = |key: &str| settings[key].as_f64().unwrap();
    OptimConfig {
        lr: setting("lr"),
        beta1: setting("beta1"),
        beta2: setting("beta2"),
        eps: setting("eps"),
        weight_decay: setting("weight_decay"),
        clip: setting("clip"),
        muon_lr: 0.0,
    }
}

/// The golden Llama, with a vocabulary of a few letters.
pub fn llama(backend: &Candle) -> (Llama<Candle>, Tokenizer) {
    let weights = open("models/llama-multi-head/model.safetensors");
    let llama = block_on(load_llama_weights(backend, &read("models/llama-multi-head/config.json"), &weights)).unwrap();
    let tokenizer = Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b"].map(String::from).to_vec(),
        scores: Some(vec![0.0; 6]),
        token_types: Some(vec![2, 3, 3, 1, 1, 1]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    });
    (llama, tokenizer.unwrap())
}

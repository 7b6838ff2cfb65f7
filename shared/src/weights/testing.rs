//! Tiny random checkpoints for unit tests.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{
    Dtype, RawTensor, quant,
    safetensors::{SafetensorsFile, write_safetensors},
};

/// Random tensors of these names and shapes, of magnitudes that keep activations lively. The same seed and list give the
/// same bytes.
pub(crate) async fn random_checkpoint(seed: u64, tensors: &[(String, Vec<usize>)]) -> SafetensorsFile<Vec<u8>> {
    SafetensorsFile::open(random_safetensors(seed, tensors, &BTreeMap::new())).await.unwrap()
}

/// The same as a file, with metadata.
pub(crate) fn random_safetensors(
    seed: u64,
    tensors: &[(String, Vec<usize>)],
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors = tensors.iter().map(|(name, shape)| {
        let spread = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let spread = if name.contains("embed_tokens") { 1.0 } else { 1.5 * spread };
        let around = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let spread = if shape.len() == 1 { 0.3 } else { spread };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| around + rng.random_range(-spread..spread)).collect();
        let bytes = quant::quantize(&values, Dtype::F32).unwrap();
        (name.clone(), RawTensor { shape: shape.clone(), dtype: Dtype::F32, bytes })
    });
    let mut out = Vec::new();
    write_safetensors(&tensors.collect(), metadata, &mut out).unwrap();
    out
}

/// Normalised mean squared error.
pub(crate) fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>();
    let error = sum(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)));
    error / sum(&mut expected.iter().map(|b| f64::from(*b).powi(2)))
}

/// A byte-level `tokenizer.json`: end of text (0), the 256 bytes, and a few merges.
pub(crate) fn tiny_tokenizer_json() -> Vec<u8> {
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = vec!["<|endoftext|>".into()];
    tokens.extend(alphabet.iter().map(|c| c.to_string()));
    tokens.extend(["th", "the", "\u{120}the", "\u{120}a", "an"].map(String::from));
    let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": ["t h", "th e", "\u{120} the", "\u{120} a", "a n"]},
    });
    serde_json::to_vec(&tokenizer).unwrap()
}

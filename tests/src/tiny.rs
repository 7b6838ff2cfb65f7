//! A bundle of random models of some kilobytes, written and read as a real one is.

use std::{collections::BTreeMap, path::Path};

use pollster::block_on;
use rscapret::{
    backend::RopeLayout,
    bundle::{Bundle, FORMAT_VERSION, FileEntry, Files, Licence, MANIFEST, Training},
    clip::{ClipVisionConfig, preprocess::PreprocessConfig, vision_gguf},
    llama::{LlamaConfig, RopeScaling, llama_gguf},
    projection::{LLM_SHA256, ProjectionsConfig, VISION_SHA256},
    tokenizer::GgufVocab,
    weights::{
        Dtype, RawTensor,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};

/// Most tokens that the tiny language model sees, the picture's among them.
pub const CONTEXT: usize = 48;
/// Joint space J.
pub const JOINT_SIZE: usize = 12;

/// Writes a bundle into a folder. Of one `seed` every byte is the same; of another the models are others.
///
/// # Panics
/// When the folder cannot be written.
pub fn write_bundle(folder: &Path, seed: u64) {
    write_bundle_of(folder, seed, &vocabulary(), 264, &[]);
}

/// The same of another vocabulary, with a table of `rows` embeddings, of which those of `loud` are many times as long as the
/// others: the model, which is tied, would choose hardly anything else.
///
/// # Panics
/// When the folder cannot be written.
pub fn write_bundle_of(folder: &Path, seed: u64, vocabulary: &GgufVocab, rows: usize, loud: &[u32]) {
    let llama = LlamaConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        vocab_size: rows,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: RopeLayout::Half,
        tie_word_embeddings: true,
    };
    let vision = ClipVisionConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        image_size: 16,
        patch_size: 8,
        projection_dim: 8,
        ..ClipVisionConfig::default()
    };
    let sizes = ProjectionsConfig {
        feature_size: 32,
        hidden_size: 32,
        joint_size: JOINT_SIZE,
        visual_tokens: 2,
        ret_output: false,
    };
    let open = |bytes: Vec<u8>| block_on(SafetensorsFile::open(bytes)).unwrap();

    let source = open(random(seed, &llama.tensors(), &BTreeMap::new(), loud));
    let llm = block_on(llama_gguf("tiny", &llama, vocabulary, &source, Dtype::F32)).unwrap().to_bytes().unwrap();
    let source = open(random(seed + 1, &vision.tensors(), &BTreeMap::new(), &[]));
    let preprocess = PreprocessConfig::clip(16);
    let vision = block_on(vision_gguf("tiny", &vision, &preprocess, &source, Dtype::F32)).unwrap().to_bytes().unwrap();
    let (llm_entry, vision_entry) = (FileEntry::of("llm.gguf", &llm), FileEntry::of("vision.gguf", &vision));
    let trained_for = [(LLM_SHA256, &llm_entry), (VISION_SHA256, &vision_entry)];
    let metadata = trained_for.map(|(key, entry)| (key.to_string(), entry.sha256.clone())).into();
    let tensors: Vec<_> = sizes.tensors().into_iter().map(|(name, shape)| (name.to_string(), shape)).collect();
    let projections = random(seed + 2, &tensors, &metadata, &[]);

    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: "tiny".into(),
        files: Files {
            llm: llm_entry,
            vision: vision_entry,
            projections: FileEntry::of("projections.safetensors", &projections),
        },
        licences: vec![Licence { part: "weights".into(), terms: "CC0-1.0".into() }],
        training: Training {
            config: format!("seed = {seed}\n"),
            data: vec!["none".into()],
            commit: "none".into(),
            ..Training::default()
        },
        notes: String::new(),
    };
    let files = [
        (MANIFEST, manifest.to_json().unwrap()),
        ("llm.gguf", llm),
        ("vision.gguf", vision),
        ("projections.safetensors", projections),
    ];
    files.into_iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
}

/// End of text (0), the 256 bytes, and two words.
///
/// # Panics
/// Never.
pub fn vocabulary() -> GgufVocab {
    // GPT-2's letters of bytes: those that print stand for themselves, the others for 256 and up, in order.
    let prints = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let letters = (0..256u32).map(|byte| if prints(byte) { byte } else { others.next().unwrap() });
    let mut tokens = vec!["<|endoftext|>".to_string()];
    tokens.extend(letters.map(|letter| char::from_u32(letter).unwrap().to_string()));
    tokens.extend(["th".into(), "the".into()]);
    let types = (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect();
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        merges: Some(vec!["t h".into(), "th e".into()]),
        token_types: Some(types),
        tokens,
        bos: Some(0),
        eos: Some(0),
        add_bos: Some(true),
        ..GgufVocab::default()
    }
}

/// Random tensors as a safetensors file, of magnitudes that keep activations lively; rows of embeddings may be `loud`.
fn random(seed: u64, tensors: &[(String, Vec<usize>)], metadata: &BTreeMap<String, String>, loud: &[u32]) -> Vec<u8> {
    // SplitMix64 (Steele et al., 2014).
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensors = tensors.iter().map(|(name, shape)| {
        let inputs = shape[1..].iter().product::<usize>() as f32;
        let (centre, spread) = match shape.len() {
            1 if name.contains("norm") && name.ends_with("weight") => (1.0, 0.3),
            1 => (0.0, 0.3),
            _ if name.contains("embed_tokens") => (0.0, 1.0),
            _ => (0.0, 1.5 * (3.0 / inputs).sqrt()),
        };
        let louder = |at: usize| {
            let row = (at / shape.last().copied().unwrap_or(1)) as u32;
            if name.contains("embed_tokens") && loud.contains(&row) { 20.0 } else { 1.0 }
        };
        let values = (0..shape.iter().product()).map(|at| louder(at) * (centre + spread * next()));
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        (name.clone(), RawTensor { shape: shape.clone(), dtype: Dtype::F32, bytes })
    });
    let mut out = Vec::new();
    write_safetensors(&tensors.collect(), metadata, &mut out).unwrap();
    out
}

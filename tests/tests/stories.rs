//! A Llama that was really trained (stories260K of llama2.c) tells the story that the reference tells, to the letter.

use std::collections::BTreeMap;

use pollster::block_on;
use rscapret::{
    backend::{Backend, Candle, RopeLayout},
    caption::{sampling::argmax, stream::DecodeStream},
    llama::{KvCache, Llama, LlamaConfig, RopeScaling},
    nn::Checkpoint,
    tokenizer::{GgufVocab, Tokenizer},
    weights::{
        Dtype, RawTensor,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};
use rscapret_tests::shared_data;

/// Little-endian values one after another.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn f32(&mut self) -> f32 {
        f32::from_le_bytes(self.take(4).try_into().unwrap())
    }
}

/// llama2.c's first format: seven integers, then all layers of one kind of tensor after those of another, in f32; rotary
/// tables, which are computed here; a head of its own if the vocabulary is written as a negative number.
fn checkpoint(bytes: &[u8]) -> (LlamaConfig, BTreeMap<String, RawTensor>) {
    let mut file = Cursor(bytes);
    let [d, f, layers, heads, groups, vocab, context] = [(); 7].map(|()| file.i32());
    let size = |n: i32| n.unsigned_abs() as usize;
    let (d, f, v, k) = (size(d), size(f), size(vocab), size(d) / size(heads));
    let config = LlamaConfig {
        hidden_size: d,
        intermediate_size: f,
        num_hidden_layers: size(layers),
        num_attention_heads: size(heads),
        num_key_value_heads: size(groups),
        head_dim: k,
        vocab_size: v,
        max_position_embeddings: size(context),
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: RopeLayout::Interleaved,
        tie_word_embeddings: vocab > 0,
    };
    let mut tensors = BTreeMap::new();
    let mut next = |name: String, shape: &[usize]| {
        let bytes = file.take(4 * shape.iter().product::<usize>()).to_vec();
        tensors.insert(name, RawTensor { shape: shape.to_vec(), dtype: Dtype::F32, bytes });
    };
    next("model.embed_tokens.weight".into(), &[v, d]);
    let keys = size(groups) * k;
    let per_layer: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[d]),
        ("self_attn.q_proj", &[d, d]),
        ("self_attn.k_proj", &[keys, d]),
        ("self_attn.v_proj", &[keys, d]),
        ("self_attn.o_proj", &[d, d]),
        ("post_attention_layernorm", &[d]),
        ("mlp.gate_proj", &[f, d]),
        ("mlp.down_proj", &[d, f]),
        ("mlp.up_proj", &[f, d]),
    ];
    for (part, shape) in per_layer {
        for i in 0..size(layers) {
            next(format!("model.layers.{i}.{part}.weight"), shape);
        }
    }
    next("model.norm.weight".into(), &[d]);
    file.take(2 * 4 * size(context) * k / 2);
    assert!(config.tie_word_embeddings && file.0.is_empty(), "{} bytes are left", file.0.len());
    (config, tensors)
}

/// llama2.c's vocabulary: the longest piece's length, then score, length and text of each.
fn tokenizer(bytes: &[u8]) -> Tokenizer {
    let mut file = Cursor(bytes);
    file.i32();
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    while !file.0.is_empty() {
        scores.push(file.f32());
        let len = file.i32() as usize;
        let piece = std::str::from_utf8(file.take(len)).unwrap();
        // It writes the begin and end of text with line feeds around them, and spaces for U+2581.
        types.push(match tokens.len() {
            0 => 2,      // unknown, as GGUF numbers the kinds
            1 | 2 => 3,  // control
            3..259 => 6, // byte
            _ => 1,      // normal
        });
        tokens.push(if tokens.len() < 259 { piece.trim().to_string() } else { piece.replace(' ', "\u{2581}") });
    }
    Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    })
    .unwrap()
}

#[test]
fn a_trained_llama_tells_the_references_story_to_the_letter() {
    let Some(data) = shared_data("stories260K") else { return };
    let read = |name: &str| std::fs::read(data.join(name)).unwrap();
    let (config, tensors) = checkpoint(&read("stories260K.bin"));
    assert_eq!((config.hidden_size, config.num_attention_heads, config.num_key_value_heads), (64, 8, 4));
    let tokenizer = tokenizer(&read("tok512.bin"));
    assert_eq!(tokenizer.vocab_size(), config.vocab_size);
    let expected = String::from_utf8(read("expected_greedy.txt")).unwrap();

    // By way of a file, as all weights come.
    let mut bytes = Vec::new();
    write_safetensors(&tensors, &BTreeMap::new(), &mut bytes).unwrap();
    let file = block_on(SafetensorsFile::open(bytes)).unwrap();
    let backend = Candle::cpu();
    let weights = Checkpoint::new(&backend, &file);
    let llama = block_on(Llama::load(&weights, &config)).unwrap();
    weights.finish(|_| true).unwrap();

    let mut cache = KvCache::new(&backend, &config, 1, config.max_position_embeddings).unwrap();
    let (mut stream, mut text, mut id) = (DecodeStream::new(&tokenizer), String::new(), tokenizer.bos().unwrap());
    // The reference prints a line feed behind the text and stops at the begin of another.
    while text.len() + 1 < expected.len() {
        let x = llama.embed(&backend, &[id]).unwrap();
        let x = backend.reshape(&x, &[1, 1, config.hidden_size]).unwrap();
        let hidden = llama.forward(&backend, &x, Some(&mut cache)).unwrap();
        id = argmax(&block_on(backend.read(&llama.logits(&backend, &hidden).unwrap())).unwrap()).unwrap();
        assert!(!tokenizer.is_control(id), "the story ends early: {text}");
        text += &stream.push(id).unwrap();
    }
    text += &stream.finish();
    assert_eq!(text + "\n", expected);

    // And the tokenizer reads what it wrote.
    let ids = tokenizer.encode(&expected, true).unwrap();
    assert_eq!(ids.first(), Some(&1));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), expected);
}

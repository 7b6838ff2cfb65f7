//! Llama against Hugging Face's, through the loading code that the programs use, and what must hold of any decoder.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pollster::block_on;
use proptest::prelude::*;
use rscapret::{
    Error, Result,
    backend::{Backend, Candle, RopeLayout},
    llama::{KvCache, Llama, LlamaConfig, RopeScaling},
    nn::Checkpoint,
    weights::{
        ByteSource, RawTensor, TensorSource,
        quant::dequantize,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};
use rscapret_tests::{
    backend,
    golden::{Golden, nmse, read},
};

const MODELS: [&str; 3] = ["llama-multi-head", "llama-grouped-tied", "llama-rope3"];
/// f32 through two layers; transformers' own float and double forwards differ by as much.
const BOUND: f64 = 1e-10;

fn load<S: ByteSource>(file: &SafetensorsFile<S>, config: &LlamaConfig) -> Result<Llama<Candle>> {
    let backend = backend();
    let checkpoint = Checkpoint::new(&backend, file);
    let llama = block_on(Llama::load(&checkpoint, config))?;
    checkpoint.finish(|_| true)?;
    Ok(llama)
}

fn open(name: &str) -> (Golden, Llama<Candle>) {
    let golden = Golden::open(name);
    let llama = load(&golden.checkpoint(), &LlamaConfig::from_json(&golden.config).unwrap()).unwrap();
    (golden, llama)
}

/// Input embeddings of sequences of one length: (B, T, D).
fn embed(llama: &Llama<Candle>, ids: &[Vec<u32>]) -> Tensor {
    let x = llama.embed(&backend(), &ids.concat()).unwrap();
    x.reshape((ids.len(), ids[0].len(), llama.config().hidden_size)).unwrap()
}

fn forward(llama: &Llama<Candle>, x: &Tensor) -> Tensor {
    llama.forward(&backend(), x, None).unwrap()
}

/// Logits of positions 4, 9, ...: those that the golden files keep.
fn some_logits(llama: &Llama<Candle>, hidden: &Tensor) -> Tensor {
    let tokens = hidden.dims()[1];
    let some: Vec<u32> = (4..tokens as u32).step_by(5).collect();
    let some = hidden.index_select(&Tensor::new(some, hidden.device()).unwrap(), 1).unwrap();
    llama.logits(&backend(), &some).unwrap()
}

/// The visual tokens of the golden file before the embeddings of its ids.
fn prefixed(golden: &Golden, llama: &Llama<Candle>) -> Tensor {
    let (values, shape) = golden.tensor("prefix");
    let prefix = backend().upload(&values, &shape).unwrap();
    backend().concat(&[&prefix, &embed(llama, &golden.ids())], 1).unwrap()
}

fn assert_same(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let error = nmse(&read(found), &read(expected));
    assert!(error <= BOUND, "{what}: {error:e}");
}

// --- against transformers -----------------------------------------------------------------------------------------

#[test]
fn tokens_to_hidden_states_and_logits() {
    for name in MODELS {
        let (golden, llama) = open(name);
        let hidden = forward(&llama, &embed(&llama, &golden.ids()));
        golden.assert_close("hidden", &hidden, BOUND);
        golden.assert_close("logits", &some_logits(&llama, &hidden), BOUND);
    }
}

#[test]
fn visual_tokens_before_the_text() {
    for name in MODELS {
        let (golden, llama) = open(name);
        let hidden = forward(&llama, &prefixed(&golden, &llama));
        golden.assert_close("prefixed.hidden", &hidden, BOUND);
        golden.assert_close("prefixed.logits", &some_logits(&llama, &hidden), BOUND);
    }
}

#[test]
fn every_part_of_the_configuration_matters() {
    let change = |name: &str, change: fn(&mut LlamaConfig)| {
        let golden = Golden::open(name);
        let mut config = LlamaConfig::from_json(&golden.config).unwrap();
        change(&mut config);
        let llama = load(&golden.checkpoint(), &config).unwrap();
        let hidden = forward(&llama, &embed(&llama, &golden.ids()));
        let error = nmse(&read(&hidden), &golden.tensor("hidden").0);
        assert!(error > 1e-7, "{name}: {error:e}");
    };
    change("llama-rope3", |c| c.rope_scaling = RopeScaling::None);
    change("llama-rope3", |c| c.rope_scaling = RopeScaling::Linear(8.0));
    change("llama-grouped-tied", |c| c.rope_theta = 10_000.0);
    change("llama-multi-head", |c| c.rope_layout = RopeLayout::Interleaved);
    change("llama-multi-head", |c| c.rms_norm_eps = 1e-3);
}

// --- the configuration --------------------------------------------------------------------------------------------

#[test]
fn rope_keeps_blends_and_divides() {
    let config = LlamaConfig::from_json(&Golden::open("llama-rope3").config).unwrap();
    let plain = LlamaConfig { rope_scaling: RopeScaling::None, ..config.clone() }.inverse_frequencies();
    let ratios: Vec<f64> = plain.iter().zip(config.inverse_frequencies()).map(|(p, s)| p / s).collect();
    assert!(ratios.contains(&1.0), "{ratios:?}");
    assert!(ratios.iter().any(|r| (1.01..7.99).contains(r)), "{ratios:?}");
    assert!(ratios.iter().any(|r| (r - 8.0).abs() < 1e-12), "{ratios:?}");
}

#[test]
fn configurations_of_older_transformers_say_the_same() {
    let new = Golden::open("llama-rope3").config;
    let mut old: serde_json::Value = serde_json::from_slice(&new).unwrap();
    let mut rope = old.as_object_mut().unwrap().remove("rope_parameters").unwrap();
    old["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
    old["rope_scaling"] = rope;
    let old = LlamaConfig::from_json(old.to_string().as_bytes()).unwrap();
    assert_eq!(old, LlamaConfig::from_json(&new).unwrap());
    assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }), "{old:?}");
}

#[test]
fn a_configuration_survives_json() {
    let read = LlamaConfig::from_json(&Golden::open("llama-rope3").config).unwrap();
    for rope_scaling in [read.rope_scaling.clone(), RopeScaling::Linear(2.5), RopeScaling::None] {
        let config = LlamaConfig { rope_scaling, ..read.clone() };
        let json = config.to_json().unwrap().to_string();
        assert_eq!(LlamaConfig::from_json(json.as_bytes()).unwrap(), config);
    }
    let divisors = RopeScaling::Factors(vec![1.0; read.head_dim / 2]);
    let refused = LlamaConfig { rope_scaling: divisors, ..read }.to_json();
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
}

#[test]
fn what_this_llama_is_not_is_refused() {
    let with = |key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&Golden::open("llama-multi-head").config).unwrap();
        config[key] = value;
        LlamaConfig::from_json(config.to_string().as_bytes()).unwrap_err()
    };
    assert!(matches!(with("attention_bias", true.into()), Error::Unsupported(_)));
    assert!(matches!(with("hidden_act", "gelu".into()), Error::Unsupported(_)));
    assert!(matches!(with("rope_parameters", serde_json::json!({"rope_type": "yarn"})), Error::Unsupported(_)));
    assert!(matches!(with("rope_parameters", serde_json::json!({"rope_type": "linear"})), Error::Malformed(_)));
    assert!(matches!(with("num_key_value_heads", 3.into()), Error::Config(_)));
    assert!(matches!(with("hidden_size", "wide".into()), Error::Malformed(_)));
}

// --- the cache ----------------------------------------------------------------------------------------------------

/// Hidden states of `x` (B, T, D) fed to a cache in pieces of these lengths.
fn in_chunks(llama: &Llama<Candle>, x: &Tensor, lengths: &[usize]) -> Tensor {
    let backend = backend();
    let (batch, tokens, _) = x.dims3().unwrap();
    let mut cache = KvCache::new(&backend, llama.config(), batch, tokens).unwrap();
    let mut parts = Vec::new();
    for &len in lengths {
        let part = backend.narrow(x, 1, cache.seen(), len).unwrap();
        parts.push(llama.forward(&backend, &part, Some(&mut cache)).unwrap());
    }
    assert_eq!(cache.seen(), tokens);
    backend.concat(&parts.iter().collect::<Vec<_>>(), 1).unwrap()
}

#[test]
fn prefill_is_as_many_decodes() {
    for name in MODELS {
        let (golden, llama) = open(name);
        let x = prefixed(&golden, &llama);
        let tokens = x.dims()[1];
        let whole = forward(&llama, &x);
        assert_same(&in_chunks(&llama, &x, &[tokens]), &whole, name);
        assert_same(&in_chunks(&llama, &x, &vec![1; tokens]), &whole, name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chunks_are_the_whole(model in 0..MODELS.len(), mut cuts in prop::collection::vec(1usize..40, 0..6)) {
        let (golden, llama) = open(MODELS[model]);
        let x = embed(&llama, &golden.ids());
        cuts.extend([0, 40]);
        cuts.sort_unstable();
        cuts.dedup();
        let lengths: Vec<usize> = cuts.windows(2).map(|w| w[1] - w[0]).collect();
        assert_same(&in_chunks(&llama, &x, &lengths), &forward(&llama, &x), &format!("{lengths:?}"));
    }

    #[test]
    fn a_row_of_a_batch_is_the_row_alone(
        model in 0..MODELS.len(),
        (batch, row) in (1usize..5).prop_flat_map(|batch| (Just(batch), 0..batch)),
        ids in prop::collection::vec(prop::collection::vec(0u32..61, 11), 4),
    ) {
        let (_, llama) = open(MODELS[model]);
        let together = forward(&llama, &embed(&llama, &ids[..batch]));
        let alone = forward(&llama, &embed(&llama, &ids[row..=row]));
        assert_same(&together.narrow(0, row, 1).unwrap(), &alone, "alone");
    }
}

#[test]
fn the_future_does_not_matter() {
    let (golden, llama) = open("llama-grouped-tied");
    let mut ids = golden.ids();
    let before = forward(&llama, &embed(&llama, &ids));
    ids[1][30] = (ids[1][30] + 1) % 61;
    let after = forward(&llama, &embed(&llama, &ids));
    let part = |x: &Tensor, from: usize, len: usize| read(&x.narrow(0, 1, 1).unwrap().narrow(1, from, len).unwrap());
    assert_eq!(part(&before, 0, 30), part(&after, 0, 30));
    assert!(nmse(&part(&after, 30, 10), &part(&before, 30, 10)) > 1e-6);
}

#[test]
fn a_reordered_cache_continues_the_chosen_sequences() {
    let backend = backend();
    for name in MODELS {
        let (golden, llama) = open(name);
        let ids = golden.ids();
        for rows in [[1, 0], [1, 1], [0, 0], [0, 1]] {
            let mut cache = KvCache::new(&backend, llama.config(), 2, 40).unwrap();
            let x = embed(&llama, &ids);
            llama.forward(&backend, &x.narrow(1, 0, 25).unwrap(), Some(&mut cache)).unwrap();
            cache.reorder(&backend, &rows).unwrap();
            let rest = x.narrow(1, 25, 15).unwrap();
            let found = llama.forward(&backend, &rest, Some(&mut cache)).unwrap();
            // The same texts written out: who was chosen, then what each row went on with.
            let spliced: Vec<Vec<u32>> =
                rows.iter().zip(&ids).map(|(&r, own)| [&ids[r][..25], &own[25..]].concat()).collect();
            let whole = forward(&llama, &embed(&llama, &spliced));
            assert_same(&found, &whole.narrow(1, 25, 15).unwrap(), &format!("{name} {rows:?}"));
        }
        let mut cache = KvCache::new(&backend, llama.config(), 2, 40).unwrap();
        assert!(cache.reorder(&backend, &[0, 2]).is_err());
        assert!(cache.reorder(&backend, &[1]).is_err());
    }
}

#[test]
fn a_truncated_cache_forgets() {
    let backend = backend();
    let (golden, llama) = open("llama-rope3");
    let x = embed(&llama, &golden.ids());
    let mut cache = KvCache::new(&backend, llama.config(), 2, 40).unwrap();
    let other = x.narrow(1, 20, 20).unwrap();
    llama.forward(&backend, &x.narrow(1, 0, 10).unwrap(), Some(&mut cache)).unwrap();
    llama.forward(&backend, &other, Some(&mut cache)).unwrap();
    cache.truncate(10);
    assert_eq!(cache.seen(), 10);
    let found = llama.forward(&backend, &x.narrow(1, 10, 30).unwrap(), Some(&mut cache)).unwrap();
    assert_same(&found, &forward(&llama, &x).narrow(1, 10, 30).unwrap(), "after truncation");
}

#[test]
fn a_full_context_is_an_error_that_harms_nothing() {
    let backend = backend();
    let (golden, llama) = open("llama-multi-head");
    let x = embed(&llama, &golden.ids());
    let mut cache = KvCache::new(&backend, llama.config(), 2, 30).unwrap();
    llama.forward(&backend, &x.narrow(1, 0, 29).unwrap(), Some(&mut cache)).unwrap();
    let error = llama.forward(&backend, &x.narrow(1, 29, 2).unwrap(), Some(&mut cache)).unwrap_err();
    assert!(error.to_string().starts_with("context: expected at most 30 tokens but found 31\n"), "{error}");
    let last = llama.forward(&backend, &x.narrow(1, 29, 1).unwrap(), Some(&mut cache)).unwrap();
    assert_same(&last, &forward(&llama, &x).narrow(1, 29, 1).unwrap(), "after the error");

    let error = KvCache::new(&backend, llama.config(), 1, 65).err().unwrap();
    assert!(error.to_string().contains("at most 64 tokens but found 65"), "{error}");
    let long = embed(&llama, &[vec![5; 65]]);
    assert!(matches!(llama.forward(&backend, &long, None), Err(Error::Config(_))));
    assert!(llama.embed(&backend, &[61]).is_err());
}

// --- no silent weights --------------------------------------------------------------------------------------------

/// The checkpoint with some tensors changed.
fn damaged(golden: &Golden, damage: impl FnOnce(&mut BTreeMap<String, RawTensor>)) -> SafetensorsFile<Vec<u8>> {
    let file = golden.checkpoint();
    let names = file.tensors().iter().map(|t| t.name.clone());
    let mut tensors = names.map(|name| (name.clone(), block_on(file.fetch(&name)).unwrap())).collect();
    damage(&mut tensors);
    let mut bytes = Vec::new();
    write_safetensors(&tensors, &BTreeMap::new(), &mut bytes).unwrap();
    block_on(SafetensorsFile::open(bytes)).unwrap()
}

#[test]
fn each_tensor_is_needed_in_its_shape_and_no_other_is_taken() {
    let golden = Golden::open("llama-multi-head");
    let config = LlamaConfig::from_json(&golden.config).unwrap();
    let failure = |file: SafetensorsFile<Vec<u8>>| load(&file, &config).err().expect("expected an error");
    let names: Vec<String> = golden.checkpoint().tensors().iter().map(|t| t.name.clone()).collect();
    assert_eq!(names.len(), 2 * 9 + 3);
    for name in &names {
        let error = failure(damaged(&golden, |t| drop(t.remove(name))));
        assert!(matches!(error.root(), Error::MissingTensor(n) if n == name), "{name}: {error}");
        let error = failure(damaged(&golden, |t| {
            let shape = &mut t.get_mut(name).unwrap().shape;
            *shape = if shape.len() == 1 { vec![1, shape[0]] } else { vec![shape.iter().product()] };
        }));
        assert!(matches!(error.root(), Error::Shape { name: n, .. } if n == name), "{name}: {error}");
    }
    let error = failure(damaged(&golden, |t| drop(t.insert("model.spare".into(), t["model.norm.weight"].clone()))));
    assert!(matches!(error.root(), Error::ExtraTensors(n) if n == &["model.spare"]), "{error}");
}

#[test]
fn a_head_is_tied_by_the_configuration_alone() {
    let golden = Golden::open("llama-multi-head");
    let mut config = LlamaConfig::from_json(&golden.config).unwrap();
    config.tie_word_embeddings = true;
    let error = load(&golden.checkpoint(), &config).err().unwrap();
    assert!(matches!(error.root(), Error::ExtraTensors(n) if n == &["lm_head.weight"]), "{error}");
    let error = load(&Golden::open("llama-grouped-tied").checkpoint(), &{
        let mut config = LlamaConfig::from_json(&Golden::open("llama-grouped-tied").config).unwrap();
        config.tie_word_embeddings = false;
        config
    })
    .err()
    .unwrap();
    assert!(matches!(error.root(), Error::MissingTensor(n) if n == "lm_head.weight"), "{error}");
}

#[test]
fn embeddings_are_rows_of_the_file() {
    let (golden, llama) = open("llama-grouped-tied");
    let table = dequantize(&block_on(golden.checkpoint().fetch("model.embed_tokens.weight")).unwrap()).unwrap();
    let found = read(&llama.embed(&backend(), &[7, 0, 60, 7]).unwrap());
    let rows: Vec<f32> = [7, 0, 60, 7].iter().flat_map(|&r| table[r * 32..][..32].to_vec()).collect();
    assert_eq!(found, rows);
}

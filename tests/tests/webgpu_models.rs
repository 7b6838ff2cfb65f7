//! What the models do beside captions, on a GPU and on the CPU.

use pollster::block_on;
use rscapret::{
    Backend, Candle, Result, WebGpu,
    backend::webgpu::Options,
    bench::{Random, greedy, q4_k_m_type},
    caption::{DecodeOptions, Need},
    clip::{ClipConfig, ClipText, ClipVision, ImageFeature},
    llama::{KvCache, Llama, LlamaConfig, RopeScaling},
    nn::Checkpoint,
    retrieval::RetrievalIndex,
    weights::Dtype,
};
use rscapret_tests::{
    command::rscapret,
    golden::{Golden, nmse},
    models::{album, demo, load_demo, open_gpu},
};
use rscapret_trainer::files::open_bundle;

#[test]
fn texts_of_clip() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    for name in ["clip-quick-gelu", "clip-gelu"] {
        let golden = Golden::open(name);
        let config = ClipConfig::from_json(&golden.config).unwrap();
        let (file, ids) = (golden.checkpoint(), golden.ids());
        let tower = block_on(ClipText::load(&Checkpoint::new(&gpu, &file), &config.text_config)).unwrap();
        let (expected, shape) = golden.tensor("text.pooler_output");
        let pooled = tower.forward(&gpu, &ids).unwrap();
        assert_eq!(gpu.shape(&pooled), shape);
        assert!(nmse(&block_on(gpu.read(&pooled)).unwrap(), &expected) <= 1e-6, "{name}");
    }
}

#[test]
fn patches_of_clip() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let golden = Golden::open("clip-patches");
    let (config, file) = (ClipConfig::from_json(&golden.config).unwrap().vision_config, golden.checkpoint());
    let tower = block_on(ClipVision::load(&Checkpoint::new(&gpu, &file), &config)).unwrap();
    let (pixels, shape) = golden.tensor("pixels");
    let (pixels, d) = (gpu.upload(&pixels, &shape).unwrap(), config.hidden_size);
    let (class, _) = golden.tensor("vision.pooler_output");
    for grid in [1, 2, 4] {
        let (patches, _) = golden.tensor(&format!("vision.patches.{grid}"));
        let features = tower.features(&gpu, &pixels, ImageFeature::Patches { grid }).unwrap();
        let expected: Vec<f32> = class
            .chunks_exact(d)
            .zip(patches.chunks_exact(grid * grid * d))
            .flat_map(|(class, patches)| [class, patches].concat())
            .collect();
        assert_eq!(gpu.shape(&features), [3, (1 + grid * grid) * d]);
        assert!(nmse(&block_on(gpu.read(&features)).unwrap(), &expected) <= 1e-6, "{grid}");
    }
}

#[test]
fn search_finds_the_same_rows_in_the_same_order() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    // Unit vectors at known angles to the query, in an order of their own; two are equal, and the earlier one goes first.
    let angles = [0.9f32, 0.1, 0.5, 0.3, 0.5, 1.4, 0.7, 0.2];
    let mut index = RetrievalIndex::new("b", 2).unwrap();
    for (i, angle) in angles.iter().enumerate() {
        index.push(i.to_string(), &[angle.cos(), angle.sin()]).unwrap();
    }
    let places = |hits: Vec<rscapret::retrieval::Hit<'_>>| hits.iter().map(|hit| hit.index).collect::<Vec<_>>();
    let there = index.on(&gpu).unwrap();
    for k in [1, 5, 8, 20] {
        let found = places(block_on(there.top_k(&[2.0, 0.0], k)).unwrap());
        assert_eq!(found, [1, 7, 3, 2, 4, 6, 0, 5][..k.min(8)]);
        assert_eq!(found, places(index.top_k(&[2.0, 0.0], k).unwrap()));
    }
}

#[test]
fn the_program_says_the_same_on_either_device() {
    if open_gpu(Options::default()).is_none() {
        return;
    }
    let picture = demo().join("album").read_dir().unwrap().map(|e| e.unwrap().path());
    let picture = picture.filter(|p| p.extension().is_some_and(|e| e == "jpg")).min().unwrap();
    let say = |device: &str| {
        let mut call = rscapret();
        call.arg("caption").arg(&picture).arg("--bundle").arg(demo()).args(["--json", "--device", device]);
        let output = call.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let here = say("cpu");
    assert!(here.contains("\"caption\""), "{here}");
    assert_eq!([say("webgpu"), say("auto")], [here.clone(), here]);
}

/// What is said to be needed before anything is loaded, against what then lies on the device.
#[test]
fn what_a_bundle_needs_is_known_before() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let bundle = open_bundle(&demo()).unwrap();
    let need = block_on(Need::of(bundle.llm, bundle.vision, bundle.projections)).unwrap();
    let before = gpu.counters().bytes;
    let captioner = load_demo(gpu.clone()).unwrap();
    // The projections and a mask of the vocabulary are not counted.
    let loaded = gpu.counters().bytes - before;
    assert!((need.weights..need.weights + (3 << 20)).contains(&loaded), "{need:?} but {loaded}");

    let config = captioner.llama().config();
    let before = gpu.counters().bytes;
    let cache = KvCache::new(&gpu, config, 1, config.max_position_embeddings).unwrap();
    let cached = gpu.counters().bytes - before;
    assert!((need.cache..need.cache + need.cache / 8).contains(&cached), "{need:?} but {cached}");
    drop(cache);

    // A picture, a caption and a text together take no more than the scratch beside the cache.
    let before = gpu.counters().bytes;
    let features = captioner.features(&album(200)[..1]).unwrap();
    block_on(captioner.caption(&features, &DecodeOptions::default())).unwrap();
    block_on(captioner.text_embedding("many boats in a harbour")).unwrap();
    let taken = gpu.counters().bytes.saturating_sub(before);
    assert!(taken <= need.cache + 2 * need.scratch, "{need:?} but {taken}");
}

/// TinyLlama's width and heads (Zhang et al., 2024).
fn one_b(layers: usize) -> LlamaConfig {
    LlamaConfig {
        hidden_size: 2048,
        intermediate_size: 5632,
        num_hidden_layers: layers,
        num_attention_heads: 32,
        num_key_value_heads: 4,
        head_dim: 64,
        vocab_size: 32_000,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_layout: rscapret::backend::RopeLayout::Interleaved,
        tie_word_embeddings: false,
    }
}

/// Logits (T, V) of `ids`, `at_once` of them at a time.
fn logits<B: Backend>(backend: &B, llama: &Llama<B>, ids: &[u32], at_once: usize) -> Result<Vec<Vec<f32>>> {
    let config = llama.config();
    let mut cache = KvCache::new(backend, config, 1, ids.len())?;
    let mut out = Vec::new();
    for ids in ids.chunks(at_once) {
        let x = backend.reshape(&llama.embed(backend, ids)?, &[1, ids.len(), config.hidden_size])?;
        let hidden = llama.forward(backend, &x, Some(&mut cache))?;
        let rows = llama.logits(backend, &backend.reshape(&hidden, &[ids.len(), config.hidden_size])?)?;
        out.extend(block_on(backend.read(&rows))?.chunks_exact(config.vocab_size).map(<[f32]>::to_vec));
    }
    Ok(out)
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// Tokens fed one by one, made-up ones and those that the CPU says after them, to 2 of the 22 layers of a model of 1.1 billion
/// weights in 4 bits; to all of them with
/// `RSCAPRET_ALL_LAYERS=1`, which takes a program that plays the GPU minutes.
#[test]
fn fed_the_same_tokens_a_model_of_1_1_billion_finds_the_same_ones_likeliest() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let all = std::env::var("RSCAPRET_ALL_LAYERS").as_deref() == Ok("1");
    let (config, tokens) = (one_b(if all { 22 } else { 2 }), 100);
    let types: [fn(&str) -> Dtype; 2] = [|_| Dtype::Q4_0, |name| q4_k_m_type(name, 22)];
    for dtype in types {
        let cpu = Candle::cpu();
        let here = block_on(Llama::load(&Random::new(&cpu, dtype), &config)).unwrap();
        let there: Llama<WebGpu> = block_on(Llama::load(&Random::new(&gpu, dtype), &config)).unwrap();
        let mut ids: Vec<u32> = (0..tokens / 2).map(|i| (i * 7919 + 13) % 32_000).collect();
        ids.extend(block_on(greedy(&cpu, &here, &ids, tokens as usize / 2, || {})).unwrap());
        // Many rows at once are multiplied with weights as they are; one row is rounded to 8 bits first on this CPU.
        let expected = logits(&cpu, &here, &ids, ids.len()).unwrap();
        let found = logits(&gpu, &there, &ids, 1).unwrap();
        let same = expected.iter().zip(&found).filter(|(a, b)| largest(a) == largest(b)).count();
        assert!(100 * same >= 99 * ids.len(), "expected 99 % of {tokens} positions to agree but found {same}");
        // All other logits as well.
        for (position, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let error = nmse(found, expected);
            assert!(error <= 5e-4, "position {position}: an error of {error:e}");
        }
        let tops: std::collections::BTreeSet<_> = expected.iter().map(|row| largest(row)).collect();
        assert!(tops.len() > 20, "{tops:?}");
    }
}

//! The models on a GPU say what they say on the CPU.

use std::path::PathBuf;

use pollster::block_on;
use rscapret::{
    Backend, Candle, WebGpu,
    backend::webgpu::Options,
    bench::{Random, q4_k_m_type, seven_b_config},
    caption::{Captioner, DecodeOptions, sequence::captioning_input},
    clip::preprocess::{Picture, decode},
    llama::{KvCache, Llama, LlamaConfig},
    weights::Dtype,
};
use rscapret_tests::{skipped, tests_dir};
use rscapret_trainer::files::open_bundle;

/// `None` without a GPU, and then it is [`skipped`]; with `CI=true` that is a failure.
fn gpu(options: Options) -> Option<WebGpu> {
    match block_on(WebGpu::open(options)) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            skipped(&format!("{error} (install mesa-vulkan-drivers)"));
            None
        }
    }
}

fn demo() -> PathBuf {
    tests_dir().parent().unwrap().join("models/demo")
}

fn load<B: Backend>(backend: B) -> Captioner<B> {
    let bundle = open_bundle(&demo()).unwrap();
    let (llm, vision, projections) = (bundle.llm, bundle.vision, bundle.projections);
    block_on(Captioner::load(backend, &bundle.manifest, &bundle.id, llm, vision, projections)).unwrap()
}

/// Every `step`th picture of the album.
fn album(step: usize) -> Vec<Picture> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(demo().join("album")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jpg"));
    files.sort();
    assert!(files.len() >= 20, "the album has pictures");
    files.iter().step_by(step).map(|f| decode(&std::fs::read(f).unwrap()).unwrap()).collect()
}

fn captions<B: Backend>(captioner: &Captioner<B>, pictures: &[Picture], options: &DecodeOptions) -> Vec<String> {
    let one = |picture: &Picture| {
        let features = captioner.features(std::slice::from_ref(picture)).unwrap();
        block_on(captioner.caption(&features, options)).unwrap()
    };
    pictures.iter().map(one).collect()
}

#[test]
fn captions_and_embeddings_are_those_of_the_cpu() {
    let Some(gpu) = gpu(Options::default()) else { return };
    let (there, here) = (load(gpu), load(Candle::cpu()));
    let pictures = album(8);
    let greedy = DecodeOptions::default();
    assert_eq!(captions(&there, &pictures, &greedy), captions(&here, &pictures, &greedy));
    let beams = DecodeOptions { beams: 3, ..DecodeOptions::default() };
    assert_eq!(captions(&there, &pictures[..2], &beams), captions(&here, &pictures[..2], &beams));

    // Several pictures at once, and texts, in the space where they are compared: cosines to three digits.
    let ours = block_on(there.image_embedding(&there.features(&pictures[..3]).unwrap())).unwrap();
    let theirs = block_on(here.image_embedding(&here.features(&pictures[..3]).unwrap())).unwrap();
    close(&ours, &theirs);
    for text in ["many planes parked at an airport", "a river"] {
        close(&block_on(there.text_embedding(text)).unwrap(), &block_on(here.text_embedding(text)).unwrap());
    }
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let error: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f32 = expected.iter().map(|b| b.powi(2)).sum();
    assert!(error <= 1e-3 * size, "expected the same vectors but found an error of {}", error / size);
}

/// The token that each position finds likeliest, when the model is fed the picture and these tokens one by one.
fn forced<B: Backend>(captioner: &Captioner<B>, picture: &Picture, ids: &[u32]) -> Vec<usize> {
    let (backend, llama) = (captioner.backend(), captioner.llama());
    let features = captioner.features(std::slice::from_ref(picture)).unwrap();
    let visual = captioner.projections().visual_tokens(backend, &features).unwrap();
    let begin: Vec<u32> = captioner.tokenizer().bos().into_iter().collect();
    let mut x = captioning_input(backend, llama, &visual, &[begin]).unwrap();
    let mut cache = KvCache::new(backend, llama.config(), 1, backend.shape(&x)[1] + ids.len()).unwrap();
    let mut best = Vec::new();
    for next in ids.iter().map(Some).chain([None]) {
        let hidden = llama.forward(backend, &x, Some(&mut cache)).unwrap();
        let tokens = backend.shape(&hidden)[1];
        let last = backend.narrow(&hidden, 1, tokens - 1, 1).unwrap();
        let logits = block_on(backend.read(&llama.logits(backend, &last).unwrap())).unwrap();
        best.push((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap());
        let Some(&id) = next else { break };
        x = backend.reshape(&llama.embed(backend, &[id]).unwrap(), &[1, 1, llama.config().hidden_size]).unwrap();
    }
    best
}

#[test]
fn fed_the_same_tokens_it_finds_the_same_ones_likeliest() {
    let Some(gpu) = gpu(Options { shader_f16: false, subgroups: false, ..Options::default() }) else { return };
    let (there, here) = (load(gpu), load(Candle::cpu()));
    let (mut same, mut all) = (0, 0);
    for picture in album(5) {
        let caption = captions(&here, std::slice::from_ref(&picture), &DecodeOptions::default()).remove(0);
        let ids = here.tokenizer().encode(&caption, false).unwrap();
        let (ours, theirs) = (forced(&there, &picture, &ids), forced(&here, &picture, &ids));
        same += ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        all += theirs.len();
    }
    println!("{same} of {all} positions agree");
    assert!(all > 100 && 100 * same >= 99 * all, "expected 99 % of {all} positions to agree but found {same}");
}

/// After the first steps nothing is made any more: not a buffer, not a bind group.
#[test]
fn a_step_of_decoding_makes_nothing_new_and_reads_four_bytes() {
    let Some(gpu) = gpu(Options::default()) else { return };
    let captioner = load(gpu.clone());
    let features = captioner.features(&album(40)[..1]).unwrap();
    let mut stream = captioner.stream(&features, &DecodeOptions::default()).unwrap();
    // The prompt, and two steps whose inputs lie in two buffers by turns.
    for _ in 0..3 {
        block_on(stream.next()).unwrap().expect("a caption of more than three tokens");
    }
    let layers = captioner.llama().config().num_hidden_layers as u64;
    let mut steps = 0;
    loop {
        let before = gpu.counters();
        if block_on(stream.next()).unwrap().is_none() {
            break;
        }
        let after = gpu.counters();
        steps += 1;
        assert_eq!(after.bind_groups, before.bind_groups, "a bind group in step {steps}");
        assert_eq!(after.buffers, before.buffers, "a buffer in step {steps}");
        assert_eq!(after.bytes_read - before.bytes_read, 4);
        assert_eq!(after.submissions - before.submissions, 1);
        let dispatches = after.dispatches - before.dispatches;
        assert!(dispatches <= 9 * layers + 4, "{dispatches} dispatches for {layers} layers");
    }
    assert!(steps >= 3, "{steps} steps");
}

/// Eight layers whose matrices have the types of a file of Q4_K_M: values and the MLP's way down of some have more bits.
fn mixed<B: Backend>(backend: &B) -> Llama<B> {
    let config = LlamaConfig {
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 8,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        vocab_size: 320,
        max_position_embeddings: 512,
        tie_word_embeddings: false,
        ..seven_b_config()
    };
    block_on(Llama::load(&Random::new(backend, |name| q4_k_m_type(name, 8)), &config)).unwrap()
}

/// Logits of ids one by one, and the dispatches of each step.
fn step_by_step<B: Backend>(backend: &B, llama: &Llama<B>, dispatches: impl Fn() -> u64) -> Vec<(Vec<f32>, u64)> {
    let mut cache = KvCache::new(backend, llama.config(), 1, 512).unwrap();
    let step = |id: u32| {
        let before = dispatches();
        let x = backend.reshape(&llama.embed(backend, &[id]).unwrap(), &[1, 1, 256]).unwrap();
        let hidden = llama.forward(backend, &x, Some(&mut cache)).unwrap();
        let logits = block_on(backend.read(&llama.logits(backend, &hidden).unwrap())).unwrap();
        (logits, dispatches() - before)
    };
    [3, 1, 4, 1, 5, 9].map(step).to_vec()
}

#[test]
fn a_step_takes_nine_dispatches_a_layer_where_values_have_more_bits_than_keys() {
    let types = |part: &str| {
        (0..8).map(|i| q4_k_m_type(&format!("model.layers.{i}.self_attn.{part}.weight"), 8)).collect::<Vec<Dtype>>()
    };
    assert!(types("v_proj").contains(&Dtype::Q6_K) && types("v_proj").contains(&Dtype::Q4_K));
    assert!(!types("q_proj").contains(&Dtype::Q6_K) && types("q_proj") == types("k_proj"));

    let Some(gpu) = gpu(Options::default()) else { return };
    let cpu = Candle::cpu();
    let found = step_by_step(&gpu, &mixed(&gpu), || gpu.counters().dispatches);
    let expected = step_by_step(&cpu, &mixed(&cpu), || 0);
    for ((logits, dispatches), (right, _)) in found.iter().zip(&expected) {
        // The embedding, the last norm and the head beside the layers'.
        assert_eq!(*dispatches, 9 * 8 + 3);
        close(logits, right);
    }
}

//! The models on a GPU say what they say on the CPU.

use pollster::block_on;
use rscapret::{
    Backend, Candle, WebGpu,
    backend::{Chosen, webgpu::Options},
    bench::{Random, q4_k_m_type, seven_b_config},
    caption::{Captioner, DecodeOptions, sequence::captioning_input},
    clip::preprocess::Picture,
    dialogue::Dialogue,
    llama::{KvCache, Llama, LlamaConfig},
    weights::Dtype,
};
use rscapret_tests::models::{album, load_demo, open_gpu};

fn captions<B: Backend>(captioner: &Captioner<B>, pictures: &[Picture], options: &DecodeOptions) -> Vec<String> {
    let one = |picture: &Picture| {
        let features = captioner.features(std::slice::from_ref(picture)).unwrap();
        block_on(captioner.caption(&features, options)).unwrap()
    };
    pictures.iter().map(one).collect()
}

/// Of every eighth picture of the album; of all with `RSCAPRET_WHOLE_ALBUM=1`, as the test in the browser.
#[test]
fn captions_and_embeddings_are_those_of_the_cpu() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let (there, here) = (load_demo(gpu).unwrap(), load_demo(Candle::cpu()).unwrap());
    let pictures = album(if std::env::var_os("RSCAPRET_WHOLE_ALBUM").is_some() { 1 } else { 8 });
    let greedy = DecodeOptions::default();
    assert_eq!(captions(&there, &pictures, &greedy), captions(&here, &pictures, &greedy));
    let drawn = DecodeOptions { temperature: 0.7, seed: 5, ..DecodeOptions::default() };
    assert_eq!(captions(&there, &pictures[..6], &drawn), captions(&here, &pictures[..6], &drawn));
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
    let Some(gpu) = open_gpu(Options { shader_f16: false, subgroups: false, ..Options::default() }) else { return };
    let (there, here) = (load_demo(gpu).unwrap(), load_demo(Candle::cpu()).unwrap());
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

/// What the device reads before the host hears of it is no part of a dialogue until it is said: an answer that is broken off, one
/// that ends by itself, one that fills the context.
#[test]
fn a_dialogue_keeps_what_was_said() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let (there, here) = (load_demo(gpu).unwrap(), load_demo(Candle::cpu()).unwrap());
    assert_eq!(turns(&there), turns(&here));
}

/// Answers with their lengths, and those of the dialogue after them.
fn turns<B: Backend>(captioner: &Captioner<B>) -> Vec<(Vec<u32>, usize)> {
    let features = captioner.features(&album(40)[..1]).unwrap();
    let mut dialogue = Dialogue::new(captioner, 48).unwrap();
    let mut said = Vec::new();
    for broken_off in [Some(3), None, None, None] {
        match said.len() {
            0 => dialogue.see(&features).unwrap(),
            _ => dialogue.say("there are").unwrap(),
        }
        let mut answer = dialogue.answer(&DecodeOptions::default()).unwrap();
        while broken_off != Some(answer.ids().len()) && block_on(answer.next()).unwrap().is_some() {}
        let ids = answer.ids().to_vec();
        drop(answer);
        said.push((ids, dialogue.len()));
        if dialogue.room() < 4 {
            break;
        }
    }
    assert_eq!(said[0].0.len(), 3);
    said
}

/// After the first steps nothing is made any more: not a buffer, not a bind group; whether the likeliest token is taken or one
/// is drawn.
#[test]
fn a_step_of_decoding_makes_nothing_new_and_reads_four_bytes() {
    let Some(gpu) = open_gpu(Options::default()) else { return };
    let captioner = load_demo(gpu.clone()).unwrap();
    for options in [DecodeOptions::default(), DecodeOptions { temperature: 0.7, ..DecodeOptions::default() }] {
        steps_make_nothing_new(&gpu, &captioner, &options);
    }
}

fn steps_make_nothing_new(gpu: &WebGpu, captioner: &Captioner<WebGpu>, options: &DecodeOptions) {
    let features = captioner.features(&album(40)[..1]).unwrap();
    let mut stream = captioner.stream(&features, options).unwrap();
    // The prompt, and steps whose inputs and noise lie in different buffers by turns.
    for _ in 0..6 {
        block_on(stream.next()).unwrap().expect("a caption of more than six tokens");
    }
    let layers = captioner.llama().config().num_hidden_layers as u64;
    let (mut steps, mut replays) = (0, 0);
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
        // Noise comes from the host, and is added.
        let noise = u64::from(options.temperature > 0.0);
        assert_eq!(after.submissions - before.submissions, 1);
        // The last answer is waited for and nothing follows it.
        replays += after.replays - before.replays;
        let dispatches = after.dispatches - before.dispatches;
        assert!(dispatches <= 5 * layers + 4 + noise, "{dispatches} dispatches for {layers} layers");
    }
    assert!(steps >= 3, "{steps} steps");
    assert!(replays + 1 >= steps, "{replays} of {steps} steps were replayed");
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
        max_position_embeddings: 1024,
        tie_word_embeddings: false,
        ..seven_b_config()
    };
    block_on(Llama::load(&Random::new(backend, |name| q4_k_m_type(name, 8)), &config)).unwrap()
}

/// A step that is replayed gives the walked one's logits, bit for bit: wherever its token stands, before where it was recorded
/// too, and where matrices are split so that no kernel joins them.
#[test]
fn a_replayed_step_is_the_walked_one() {
    let split = Options { max_binding: Some(1 << 16), ..Options::default() };
    for options in [Options::default(), split] {
        let Some(gpu) = open_gpu(options) else { return };
        let llama = mixed(&gpu);
        let vocabulary = llama.config().vocab_size;
        let mask = gpu.upload(&vec![0.0; vocabulary], &[vocabulary]).unwrap();
        // Up to where the keys of a long context are cut into chunks.
        let rows = llama.embed(&gpu, &(0..250).map(|i| i * 7 % 320).collect::<Vec<u32>>()).unwrap();
        let rows = gpu.reshape(&rows, &[1, 250, 256]).unwrap();
        let [mut replayed, mut walked] = [0, 1].map(|_| {
            let mut cache = KvCache::new(&gpu, llama.config(), 1, 1024).unwrap();
            llama.forward(&gpu, &rows, Some(&mut cache)).unwrap();
            cache
        });
        let mut place: Option<Chosen<WebGpu>> = None;
        let replays = gpu.counters().replays;
        for step in 0..20 {
            let id = step * 11 % 320;
            if step == 14 {
                replayed.truncate(5);
                walked.truncate(5);
            }
            let mut one = vec![0.0; vocabulary];
            one[id as usize] = 1.0;
            let one = gpu.upload(&one, &[1, vocabulary]).unwrap();
            let chosen = gpu.choose(&one, &mask, place.as_ref().map(|chosen| &chosen.ids)).unwrap().unwrap();
            let logits = llama.decode(&gpu, &chosen.ids, &mut replayed).unwrap();
            place = Some(chosen);
            let x = gpu.reshape(&llama.embed(&gpu, &[id]).unwrap(), &[1, 1, 256]).unwrap();
            let hidden = llama.forward(&gpu, &x, Some(&mut walked)).unwrap();
            let right = llama.logits(&gpu, &gpu.reshape(&hidden, &[1, 256]).unwrap()).unwrap();
            let [logits, right] = [&logits, &right].map(|logits| block_on(gpu.read(logits)).unwrap());
            assert!(logits == right, "step {step} of {options:?}");
        }
        assert_eq!(gpu.counters().replays - replays, 19);
        // Ids that lie elsewhere are another step, which is recorded in the place of this one.
        let elsewhere = gpu.upload(&[f32::from_bits(3)], &[1]).unwrap();
        llama.decode(&gpu, &elsewhere, &mut replayed).unwrap();
        assert_eq!(gpu.counters().replays - replays, 19);
        llama.decode(&gpu, &elsewhere, &mut replayed).unwrap();
        assert_eq!(gpu.counters().replays - replays, 20);
    }
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
fn a_step_takes_five_dispatches_a_layer_where_values_have_more_bits_than_keys() {
    let types = |part: &str| {
        (0..8).map(|i| q4_k_m_type(&format!("model.layers.{i}.self_attn.{part}.weight"), 8)).collect::<Vec<Dtype>>()
    };
    assert!(types("v_proj").contains(&Dtype::Q6_K) && types("v_proj").contains(&Dtype::Q4_K));
    assert!(!types("q_proj").contains(&Dtype::Q6_K) && types("q_proj") == types("k_proj"));

    let Some(gpu) = open_gpu(Options::default()) else { return };
    let cpu = Candle::cpu();
    let found = step_by_step(&gpu, &mixed(&gpu), || gpu.counters().dispatches);
    let expected = step_by_step(&cpu, &mixed(&cpu), || 0);
    for ((logits, dispatches), (right, _)) in found.iter().zip(&expected) {
        // The embedding, the last norm and the head beside the layers'.
        assert_eq!(*dispatches, 5 * 8 + 3);
        close(logits, right);
    }
}

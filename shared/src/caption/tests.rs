//! The captioner on a tiny random bundle that was written and read as a real one is.

use std::cell::OnceCell;

use super::*;
use crate::{
    Backend, Candle, Error, Result,
    backend::RopeLayout,
    bundle::{self, Bundle, FORMAT_VERSION, FileEntry, Files, Licence, Training, sha256_hex},
    clip::{
        ClipVisionConfig, ImageFeature,
        preprocess::{Picture, PreprocessConfig},
        vision_gguf,
    },
    llama::{KvCache, LlamaConfig, RopeScaling, llama_gguf, vocab_from_json},
    projection::{Conventions, LLM_SHA256, ProjectionsConfig, VISION_SHA256},
    weights::{
        Dtype,
        testing::{nmse, random_checkpoint, random_safetensors, tiny_tokenizer_json},
    },
};

const CONTEXT: usize = 40;

struct Parts {
    manifest: Bundle,
    llm: Vec<u8>,
    vision: Vec<u8>,
    projections: Vec<u8>,
}

async fn parts(visual_tokens: usize) -> Parts {
    parts_with(visual_tokens, &Conventions::default()).await
}

async fn parts_with(visual_tokens: usize, conventions: &Conventions) -> Parts {
    let llama = LlamaConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        vocab_size: 270,
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
    let sizes =
        ProjectionsConfig { feature_size: 32, hidden_size: 32, joint_size: 12, visual_tokens, ret_output: false };
    let vocab = vocab_from_json(&tiny_tokenizer_json()).unwrap();
    let source = random_checkpoint(1, &llama.tensors()).await;
    let llm = llama_gguf("tiny", &llama, &vocab, &source, Dtype::F32).await.unwrap().to_bytes().unwrap();
    let source = random_checkpoint(2, &vision.tensors()).await;
    let preprocess = PreprocessConfig::clip(16);
    let vision = vision_gguf("tiny", &vision, &preprocess, &source, Dtype::F32).await.unwrap().to_bytes().unwrap();
    let tensors: Vec<(String, Vec<usize>)> = sizes.tensors().into_iter().map(|(n, s)| (n.to_string(), s)).collect();
    let hashes = [(LLM_SHA256, sha256_hex(&llm)), (VISION_SHA256, sha256_hex(&vision))];
    let mut metadata = conventions.to_metadata();
    metadata.extend(hashes.into_iter().map(|(k, v)| (k.to_string(), v)));
    let projections = random_safetensors(3, &tensors, &metadata);
    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: "tiny".into(),
        files: Files {
            llm: FileEntry::of("llm.gguf", &llm),
            vision: FileEntry::of("vision.gguf", &vision),
            projections: FileEntry::of("projections.safetensors", &projections),
        },
        licences: vec![Licence { part: "all".into(), terms: "none".into() }],
        training: Training::default(),
        notes: String::new(),
    };
    Parts { manifest, llm, vision, projections }
}

async fn open(p: Parts) -> Result<Captioner<Candle>> {
    let id = bundle::bundle_id(&p.manifest.to_json().unwrap());
    Captioner::load(Candle::cpu(), &p.manifest, &id, p.llm, p.vision, p.projections).await
}

/// Opened once a thread.
fn with<T>(test: impl AsyncFnOnce(&Captioner<Candle>) -> T) -> T {
    thread_local!(static TINY: OnceCell<Captioner<Candle>> = const { OnceCell::new() });
    TINY.with(|tiny| {
        let captioner = tiny.get_or_init(|| pollster::block_on(async { open(parts(3).await).await.unwrap() }));
        pollster::block_on(test(captioner))
    })
}

fn picture(seed: usize) -> Picture {
    Picture::new(20, 24, (0..3 * 20 * 24).map(|i| (i * (7 + 6 * seed) % 251) as u8).collect()).unwrap()
}

async fn pieces(c: &Captioner<Candle>, options: &DecodeOptions) -> (Vec<String>, DecodeStats) {
    let features = c.features(&[picture(1)]).unwrap();
    let mut stream = c.stream(&features, options).unwrap();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        pieces.push(piece);
    }
    assert_eq!(stream.next().await.unwrap(), None);
    (pieces, stream.stats())
}

/// Chosen token by token, each from a forward pass over everything.
async fn greedy_without_cache(c: &Captioner<Candle>, max_tokens: usize) -> Vec<u32> {
    let (b, d) = (c.backend(), c.llama().config().hidden_size);
    let visual = c.projections().visual_tokens(b, &c.features(&[picture(1)]).unwrap()).unwrap();
    let mut ids = vec![c.tokenizer().bos().unwrap()];
    while ids.len() <= max_tokens {
        let x = sequence::captioning_input(b, c.llama(), &visual, std::slice::from_ref(&ids)).unwrap();
        assert_eq!(b.shape(&x), [1, 3 + ids.len(), d]);
        let hidden = c.llama().forward(b, &x, None).unwrap();
        let logits = b.read(&c.llama().logits(b, &hidden).unwrap()).await.unwrap();
        let mut last = logits[logits.len() - 270..].to_vec();
        sampling::ban(&mut last, c.banned());
        let id = sampling::argmax(&last).unwrap();
        if Some(id) == c.tokenizer().eos() {
            break;
        }
        ids.push(id);
    }
    ids.split_off(1)
}

#[test]
fn a_greedy_caption_is_the_likeliest_token_each_time() {
    with(async |c| {
        let options = DecodeOptions { max_tokens: 12, ..DecodeOptions::default() };
        let ids = greedy_without_cache(c, 12).await;
        assert!(ids.len() > 3);
        let (pieces, stats) = pieces(c, &options).await;
        assert_eq!(pieces.concat(), c.tokenizer().decode(&ids, true).unwrap().trim());
        assert_eq!((stats.prompt_tokens, stats.tokens, stats.ended), (4, ids.len(), ids.len() < 12));
        assert_eq!(pieces.len(), ids.len() + usize::from(stats.ended));
        let features = c.features(&[picture(1)]).unwrap();
        assert_eq!(c.caption(&features, &options).await.unwrap(), pieces.concat());
    });
}

#[test]
fn one_prefill_is_as_many_decodes() {
    with(async |c| {
        let (b, llama) = (c.backend(), c.llama());
        let x = llama.embed(b, &[0, 5, 200, 17, 17, 90, 3]).unwrap();
        let x = b.reshape(&x, &[1, 7, 32]).unwrap();
        let whole = b.read(&llama.forward(b, &x, None).unwrap()).await.unwrap();
        let mut cache = KvCache::new(b, llama.config(), 1, 7).unwrap();
        let mut steps = Vec::new();
        for (from, len) in [(0, 3), (3, 1), (4, 1), (5, 2)] {
            let hidden = llama.forward(b, &b.narrow(&x, 1, from, len).unwrap(), Some(&mut cache)).unwrap();
            steps.extend(b.read(&hidden).await.unwrap());
        }
        assert!(nmse(&steps, &whole) < 1e-10);
    });
}

/// Log-probability of a text and its end, or of a text that was cut.
async fn log_probability(c: &Captioner<Candle>, ids: &[u32], ended: bool) -> f64 {
    let b = c.backend();
    let visual = c.projections().visual_tokens(b, &c.features(&[picture(1)]).unwrap()).unwrap();
    let mut sequence = vec![c.tokenizer().bos().unwrap()];
    sequence.extend(ids);
    let x = sequence::captioning_input(b, c.llama(), &visual, &[sequence]).unwrap();
    let hidden = c.llama().forward(b, &x, None).unwrap();
    let logits = b.read(&c.llama().logits(b, &hidden).unwrap()).await.unwrap();
    let targets = ids.iter().copied().chain(ended.then(|| c.tokenizer().eos().unwrap()));
    let rows = logits.chunks_exact(270).skip(3);
    rows.zip(targets).map(|(row, id)| f64::from(sampling::log_softmax(row).unwrap()[id as usize])).sum()
}

#[test]
fn beams_find_what_is_likelier() {
    with(async |c| {
        // Without a penalty of length the score is the log-probability itself.
        let options = DecodeOptions { max_tokens: 6, beams: 5, length_penalty: 0.0, ..DecodeOptions::default() };
        let features = c.features(&[picture(1)]).unwrap();
        let visual = c.projections().visual_tokens(c.backend(), &features).unwrap();
        // The search by full forward passes: no cache, no reordering.
        let mut search = sampling::BeamSearch::new(5, 0.0, c.tokenizer().eos(), 6).unwrap();
        let mut live: Vec<Vec<u32>> = vec![vec![c.tokenizer().bos().unwrap()]];
        let mut reordered = false;
        while !search.done() {
            let mut rows = Vec::new();
            for ids in &live {
                let x = sequence::captioning_input(c.backend(), c.llama(), &visual, std::slice::from_ref(ids)).unwrap();
                let hidden = c.llama().forward(c.backend(), &x, None).unwrap();
                let logits = c.backend().read(&c.llama().logits(c.backend(), &hidden).unwrap()).await.unwrap();
                let mut row = sampling::log_softmax(&logits[logits.len() - 270..]).unwrap();
                sampling::ban(&mut row, c.banned());
                rows.push(row);
            }
            let step = search.advance(&rows).unwrap();
            reordered |= live.len() > 1 && step.parents.iter().enumerate().any(|(i, &p)| i != p);
            let next = step.parents.iter().zip(&step.tokens);
            live = next.map(|(&p, &t)| live[p].iter().copied().chain([t]).collect()).collect();
        }
        assert!(reordered);
        let best = search.best().unwrap();
        let text = c.tokenizer().decode(&best.tokens, true).unwrap();
        let (pieces, stats) = pieces(c, &options).await;
        assert_eq!(pieces.concat(), text.trim());
        assert!(pieces[..pieces.len() - 1].iter().all(String::is_empty));
        assert_eq!((stats.tokens, stats.ended), (best.tokens.len(), best.ended));
        // And the search is worth its price here.
        let greedy = greedy_without_cache(c, 6).await;
        let greedy = log_probability(c, &greedy, greedy.len() < 6).await;
        assert!((log_probability(c, &best.tokens, best.ended).await - best.score).abs() < 1e-4);
        assert!(best.score >= greedy, "{} {greedy}", best.score);
    });
}

#[test]
fn a_seed_is_a_caption() {
    with(async |c| {
        let options = |seed| DecodeOptions { temperature: 1.5, max_tokens: 20, seed, ..DecodeOptions::default() };
        let first = pieces(c, &options(7)).await;
        assert_eq!(first, pieces(c, &options(7)).await);
        assert_ne!(first, pieces(c, &options(8)).await);
        // Every caption is text: neither [PAD] rows nor the end of text stand in it.
        for seed in 0..20 {
            let text = pieces(c, &options(seed)).await.0.concat();
            assert!(!text.contains("<|endoftext|>") && !text.contains("[PAD") && text.trim() == text, "{text}");
        }
    });
}

#[test]
fn the_context_ends_a_caption() {
    with(async |c| {
        // Banned ends would be needed to be sure of the length: of many seeds some run on.
        let options = |seed| DecodeOptions { max_tokens: 500, temperature: 1.0, seed, ..DecodeOptions::default() };
        let mut longest = 0;
        for seed in 0..6 {
            let (_, stats) = pieces(c, &options(seed)).await;
            assert!(stats.ended || stats.tokens == CONTEXT + 1 - 4, "{stats:?}");
            longest = longest.max(stats.tokens);
        }
        assert!(longest > 8, "{longest}");
    });
}

#[test]
fn embeddings_are_unit_vectors_of_their_own_input() {
    with(async |c| {
        let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let features = c.features(&[picture(1), picture(2)]).unwrap();
        let both = c.image_embedding(&features).await.unwrap();
        let second = c.image_embedding(&c.features(&[picture(2)]).unwrap()).await.unwrap();
        assert_eq!(both.len(), 24);
        assert!(nmse(&second, &both[12..]) < 1e-10 && nmse(&both[..12], &both[12..]) > 1e-6);
        let text = c.text_embedding("the plane").await.unwrap();
        assert!([&both[..12], &second, &text].iter().all(|v| (length(v) - 1.0).abs() < 1e-5));
        assert!(nmse(&c.text_embedding("the plan").await.unwrap(), &text) > 1e-6);
        c.text_embedding("").await.unwrap();
        let long = "x".repeat(CONTEXT - 1);
        assert!(matches!(c.text_embedding(&long).await.unwrap_err().root(), Error::Config(_)));
        c.text_embedding(&long[1..]).await.unwrap();
    });
}

#[test]
fn what_the_projections_were_trained_by_is_kept() {
    pollster::block_on(async {
        let conventions = Conventions { hidden_layer: Some(1), prompt: "the plane".into(), ..Conventions::default() };
        let c = open(parts_with(3, &conventions).await).await.unwrap();
        let (b, ids) = (c.backend(), sequence::text_ids(c.tokenizer(), "the plane").unwrap());
        // After one layer of two, without the final norm.
        let input =
            sequence::retrieval_input(b, c.llama(), c.projections().ret_embedding(), std::slice::from_ref(&ids))
                .unwrap();
        let states = c.llama().hidden_states(b, &input.x, None, &[1, 2, 0]).unwrap();
        let embedded = async |state| {
            let hidden = sequence::rows_of(b, state, &input.rows).unwrap();
            b.read(&c.projections().text_embedding(b, &hidden).unwrap()).await.unwrap()
        };
        let found = c.text_embedding("the plane").await.unwrap();
        assert_eq!(found, embedded(&states[0]).await);
        assert!(nmse(&embedded(&states[1]).await, &found) > 1e-4);
        let last = c.llama().forward(b, &input.x, None).unwrap();
        assert_eq!(b.read(&states[1]).await.unwrap(), b.read(&last).await.unwrap());
        assert_eq!(b.read(&states[2]).await.unwrap(), b.read(&input.x).await.unwrap());
        assert!(c.llama().hidden_states(b, &input.x, None, &[3]).is_err());

        // The prompt stands before the caption, and is no part of it.
        let features = c.features(&[picture(1)]).unwrap();
        let visual = c.projections().visual_tokens(b, &features).unwrap();
        let x = sequence::captioning_input(b, c.llama(), &visual, std::slice::from_ref(&ids)).unwrap();
        let hidden = c.llama().forward(b, &x, None).unwrap();
        let last = [(2 + ids.len()) as u32];
        let logits = c.llama().logits(b, &sequence::rows_of(b, &hidden, &last).unwrap()).unwrap();
        let mut logits = b.read(&logits).await.unwrap();
        sampling::ban(&mut logits, c.banned());
        let (tokens, stats) = pieces(&c, &DecodeOptions { max_tokens: 1, ..DecodeOptions::default() }).await;
        assert_eq!(stats.prompt_tokens, 3 + ids.len());
        let first = sampling::argmax(&logits).unwrap();
        let expected = c.tokenizer().decode(&[first], true).unwrap();
        assert!(Some(first) == c.tokenizer().eos() || tokens.concat() == expected.trim(), "{tokens:?} {expected}");

        // No such layer.
        let conventions = Conventions { hidden_layer: Some(3), ..Conventions::default() };
        let error = open(parts_with(3, &conventions).await).await.err().unwrap().to_string();
        assert!(error.contains("`hidden_layer` from 1 to 2"), "{error}");
    });
}

#[test]
fn a_grid_of_patches_is_as_many_visual_tokens_more() {
    pollster::block_on(async {
        let patches = |grid| Conventions { image_feature: ImageFeature::Patches { grid }, ..Conventions::default() };
        let class = open(parts(3).await).await.unwrap();
        let c = open(parts_with(3, &patches(2)).await).await.unwrap();
        let b = c.backend();
        assert_eq!((c.projections().feature_width(), c.projections().tokens_of_image()), (5 * 32, 4 * 3));
        // The class token's feature stands first, and retrieval goes by it alone.
        let (features, alone) =
            (c.features(&[picture(1), picture(2)]).unwrap(), class.features(&[picture(1), picture(2)]));
        let (alone, all) = (alone.unwrap(), b.read(&features).await.unwrap());
        let firsts: Vec<f32> = all.chunks_exact(5 * 32).flat_map(|row| row[..32].to_vec()).collect();
        assert!(nmse(&firsts, &b.read(&alone).await.unwrap()) < 1e-10);
        let (found, expected) =
            (c.image_embedding(&features).await.unwrap(), class.image_embedding(&alone).await.unwrap());
        assert!(nmse(&found, &expected) < 1e-10);
        // Each patch goes through the one map, patch by patch.
        let visual = b.read(&c.projections().visual_tokens(b, &features).unwrap()).await.unwrap();
        for (picture, row) in all.chunks_exact(5 * 32).enumerate() {
            for (patch, vector) in row[32..].chunks_exact(32).enumerate() {
                let alone = b.upload(vector, &[1, 32]).unwrap();
                let alone = b.read(&class.projections().visual_tokens(b, &alone).unwrap()).await.unwrap();
                let own = &visual[(4 * picture + patch) * 3 * 32..][..3 * 32];
                assert!(nmse(own, &alone) < 1e-10, "{picture} {patch}");
            }
        }
        let (_, stats) = pieces(&c, &DecodeOptions { max_tokens: 2, ..DecodeOptions::default() }).await;
        assert_eq!(stats.prompt_tokens, 12 + 1);
        // Features of the other kind are none of its own.
        for error in [
            c.projections().visual_tokens(b, &alone).err().unwrap(),
            c.projections().image_embedding(b, &alone).err().unwrap(),
            class.projections().visual_tokens(b, &features).err().unwrap(),
        ] {
            assert!(matches!(&error, Error::Shape { name, .. } if name == "features"), "{error}");
        }
        // No such grid, and no room for one.
        let error = async |k, grid| open(parts_with(k, &patches(grid)).await).await.err().unwrap().to_string();
        let none = error(3, 3).await;
        assert!(none.contains("divide the 2 patches of a side of the tower's pictures but found 3\ntake one of 1, 2"));
        let narrow = error(11, 2).await;
        assert!(narrow.contains("a context of at least 44 tokens, those of a picture, but found 40"), "{narrow}");
        let none = error(3, 65).await;
        assert!(none.contains("projections.safetensors: expected `patch_grid` to be a number from 1 to 64"), "{none}");
    });
}

#[test]
fn interleaved_parts_stand_as_they_do_alone() {
    with(async |c| {
        let (b, features) = (c.backend(), c.features(&[picture(1), picture(2)]).unwrap());
        let visual = c.projections().visual_tokens(b, &features).unwrap();
        let ids =
            [sequence::text_ids(c.tokenizer(), "the").unwrap(), sequence::text_ids(c.tokenizer(), "a plane").unwrap()];
        let alone = sequence::captioning_input(b, c.llama(), &visual, &ids).unwrap();
        let width = c.llama().config().hidden_size;
        let (alone, length) = (b.read(&alone).await.unwrap(), b.shape(&alone)[1] * width);
        let parts = |i: usize| [sequence::Part::Picture(i), sequence::Part::Ids(&ids[i])];
        let sequences = [[parts(1), parts(0)].concat(), parts(0).to_vec(), vec![sequence::Part::Ids(&ids[1])]];
        let both = sequence::interleaved_input(b, c.llama(), &visual, &sequences).unwrap();
        let ends = [(3 + ids[0].len()) * width, (3 + ids[1].len()) * width];
        let (first, second) = (&alone[..ends[0]], &alone[length..][..ends[1]]);
        let tokens = b.shape(&both.x)[1];
        assert_eq!(tokens, 6 + ids[0].len() + ids[1].len());
        let x = b.read(&both.x).await.unwrap();
        let rows: Vec<&[f32]> = x.chunks_exact(tokens * width).collect();
        assert_eq!(rows[0], [second, first].concat());
        assert_eq!(rows[1][..ends[0]], *first);
        assert_eq!(rows[2][..ends[1] - 3 * width], second[3 * width..]);
        let k = 3 + ids[1].len();
        assert_eq!(both.starts, [vec![0, 3, k, k + 3], vec![tokens, tokens + 3], vec![2 * tokens]]);
        // Neither a picture that is not there nor nothing at all.
        assert!(sequence::interleaved_input(b, c.llama(), &visual, &[vec![sequence::Part::Picture(2)]]).is_err());
        assert!(sequence::interleaved_input(b, c.llama(), &visual, &[vec![]]).is_err());
    });
}

#[test]
fn padding_changes_no_text() {
    with(async |c| {
        let b = c.backend();
        let texts = ["a plane", "", "the plane is on the runway"];
        let ids: Vec<Vec<u32>> = texts.iter().map(|t| sequence::text_ids(c.tokenizer(), t).unwrap()).collect();
        assert_eq!(ids[1], [0]);
        let together = sequence::retrieval_hidden(b, c.llama(), c.projections(), &ids).unwrap();
        let together = b.read(&c.projections().text_embedding(b, &together).unwrap()).await.unwrap();
        for (text, row) in texts.iter().zip(together.chunks_exact(12)) {
            assert!(nmse(&c.text_embedding(text).await.unwrap(), row) < 1e-10, "{text}");
        }
    });
}

#[test]
fn what_does_not_belong_together_is_refused() {
    pollster::block_on(async {
        let mut other = parts(3).await;
        other.manifest.files.llm.sha256 = "0".repeat(64);
        let error = open(other).await.err().unwrap();
        assert!(error.to_string().contains("llm_sha256"), "{error}");
        let mut short = parts(3).await;
        short.vision.pop();
        let error = open(short).await.err().unwrap();
        assert!(error.to_string().starts_with("vision.gguf: expected"), "{error}");
    });
    with(async |c| {
        assert!(matches!(c.features(&[]), Err(Error::Config(_))));
        let two = c.features(&[picture(1), picture(2)]).unwrap();
        assert!(matches!(c.stream(&two, &DecodeOptions::default()), Err(Error::Config(_))));
        let one = c.features(&[picture(1)]).unwrap();
        assert!(c.stream(&one, &DecodeOptions { max_tokens: 0, ..DecodeOptions::default() }).is_err());
    });
}

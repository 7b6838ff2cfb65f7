//! Tokenizers against the ids that the references give, and against hostile vocabularies.

use std::io::Read;
use std::path::Path;

use proptest::prelude::*;
use rscapret::tokenizer::{CLIP_CONTEXT, ClipTokenizer, GgufVocab, Tokenizer};
use rscapret::weights::gguf::{GgufHeader, Parsed};
use rscapret_tests::shared_data;
use serde::Deserialize;

fn from_file(path: &Path) -> Tokenizer {
    let bytes = std::fs::read(path).unwrap();
    let Parsed::Header(header) = GgufHeader::parse(&bytes, bytes.len() as u64).unwrap() else {
        panic!("the whole file is there")
    };
    Tokenizer::from_gguf(&header.metadata).unwrap()
}

fn vectors(name: &str) {
    let Some(folder) = shared_data("tokenizers") else { return };
    let file = folder.join(name);
    let tokenizer = from_file(&file);
    let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{name}.{ending}"))).unwrap();
    let (inputs, outputs) = (read("inp"), read("out"));
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.split('\n').collect();
    assert_eq!((inputs.len(), outputs.len()), (47, 47));
    for (text, expected) in inputs.into_iter().zip(outputs) {
        let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), text);
    }
}

#[test]
fn llama_spm_vectors() {
    vectors("ggml-vocab-llama-spm.gguf");
}

#[test]
fn gpt2_vectors() {
    vectors("ggml-vocab-gpt-2.gguf");
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    clip: Vec<u32>,
    llama: Vec<u32>,
}

fn golden(folder: &Path) -> Vec<Golden> {
    let lines: Vec<Golden> = ["golden_ucm.jsonl", "golden_odd.jsonl"]
        .iter()
        .flat_map(|name| {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Golden>>()
        })
        .collect();
    assert_eq!(lines.len(), 2032 + 47);
    lines
}

fn clip(folder: &Path) -> ClipTokenizer {
    ClipTokenizer::from_merges(&clip_merges(folder)).unwrap()
}

fn clip_merges(folder: &Path) -> String {
    let packed = std::fs::File::open(folder.join("bpe_simple_vocab_16e6.txt.gz")).unwrap();
    let mut merges = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut merges).unwrap();
    merges
}

#[test]
fn llama_and_clip_golden_lines() {
    let Some(folder) = shared_data("tokenizers") else { return };
    let (llama, clip) = (from_file(&folder.join("ggml-vocab-llama-spm.gguf")), clip(&folder));
    for line in golden(&folder) {
        assert_eq!(llama.encode(&line.text, false).unwrap(), line.llama, "{:?}", line.text);
        assert_eq!(clip.encode(&line.text).unwrap(), line.clip, "{:?}", line.text);
    }
}

#[test]
fn llama_ends_and_specials() {
    let Some(folder) = shared_data("tokenizers") else { return };
    let llama = from_file(&folder.join("ggml-vocab-llama-spm.gguf"));
    assert_eq!((llama.bos(), llama.eos(), llama.vocab_size()), (Some(1), Some(2), 32_000));
    assert_eq!(llama.encode("Hello world", true).unwrap(), [1, 15043, 3186]);
    assert_eq!(llama.encode("", true).unwrap(), [1]);
    assert!(!llama.encode("</s>", false).unwrap().contains(&2), "text is data");
    assert_eq!(llama.encode_template("Hello</s>Hello", false).unwrap(), [15043, 2, 15043]);
    assert_eq!(llama.decode(&[1, 15043, 3186, 2], true).unwrap(), "Hello world");
    assert_eq!(llama.token_bytes(13).unwrap(), b"\n");
    assert!(llama.is_control(1) && llama.is_control(0) && !llama.is_control(13));
    assert!(llama.decode(&[32_000], true).is_err());
}

#[test]
fn clip_pads_and_cuts() {
    let Some(folder) = shared_data("tokenizers") else { return };
    let clip = clip(&folder);
    assert_eq!((clip.start(), clip.end()), (49406, 49407));
    let short = clip.encode_padded("a photo").unwrap();
    assert_eq!(short[..3], [49406, 320, 1125]);
    assert!(short.len() == CLIP_CONTEXT && short[3..].iter().all(|&id| id == 49407));
    let long = clip.encode_padded(&"farmland ".repeat(100)).unwrap();
    assert!(long.len() == CLIP_CONTEXT && long[76] == 49407 && long[1..76].iter().all(|&id| id == 45258));
    assert!(!clip.encode("<|endoftext|>").unwrap().contains(&49407), "text is data");
}

#[test]
fn clip_from_vocab_and_merges_is_the_same() {
    let Some(folder) = shared_data("tokenizers") else { return };
    let text = clip_merges(&folder);
    let from_merges = ClipTokenizer::from_merges(&text).unwrap();
    // The order of ids, written down once more: CLIP's own way of making its table.
    let merges: Vec<&str> = text.split('\n').skip(1).take(48_894).collect();
    let printing = (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..0x144);
    let alphabet: Vec<String> = printing.map(|c| char::from_u32(c).unwrap().to_string()).collect();
    let mut tokens = alphabet.clone();
    tokens.extend(alphabet.iter().map(|c| format!("{c}</w>")));
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    tokens.extend(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let vocab: std::collections::BTreeMap<_, _> = tokens.into_iter().zip(0u32..).collect();
    let from_both = ClipTokenizer::from_vocab_merges(
        &serde_json::to_string(&vocab).unwrap(),
        &format!("#version: 0.2\n{}\n", merges.join("\n")),
    )
    .unwrap();
    for line in golden(&folder).iter().step_by(17) {
        assert_eq!(from_both.encode(&line.text).unwrap(), from_merges.encode(&line.text).unwrap());
    }
}

/// A byte-level vocabulary without a file: the alphabet, two merges and a control token.
fn small_vocab(pre: &str) -> GgufVocab {
    let printing = (0x21..=0x7eu32).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..0x144);
    let mut tokens: Vec<String> = printing.map(|c| char::from_u32(c).unwrap().to_string()).collect();
    tokens.extend(["th".into(), "the".into(), "<|endoftext|>".into()]);
    GgufVocab {
        model: "gpt2".into(),
        token_types: Some((0..tokens.len()).map(|i| if i == 258 { 3 } else { 1 }).collect()),
        merges: Some(vec!["t h".into(), "th e".into()]),
        pre: Some(pre.into()),
        bos: Some(258),
        eos: Some(258),
        tokens,
        ..GgufVocab::default()
    }
}

#[test]
fn llama_3_begins_its_texts() {
    let tokenizer = Tokenizer::from_vocab(small_vocab("llama-bpe")).unwrap();
    assert_eq!(tokenizer.encode("the", true).unwrap(), [258, 257]);
    assert_eq!(Tokenizer::from_vocab(small_vocab("gpt-2")).unwrap().encode("the", true).unwrap(), [257]);
}

#[test]
fn pre_tokenizers_cut_where_they_should() {
    // With each digit and pair of digits a token, merges show which digits the cut left together.
    let ids = |pre: &str, text: &str| {
        let mut vocab = small_vocab(pre);
        for (i, merge) in ["1 2", "12 3", "123 4"].iter().enumerate() {
            vocab.tokens.push(merge.replace(' ', ""));
            vocab.token_types.as_mut().unwrap().push(1);
            vocab.merges.as_mut().unwrap().push(merge.to_string());
            assert_eq!(vocab.tokens.len(), 260 + i);
        }
        Tokenizer::from_vocab(vocab).unwrap().encode(text, false).unwrap()
    };
    let four = b'4' - b'!';
    assert_eq!(ids("gpt-2", "1234"), [261]);
    assert_eq!(ids("llama-bpe", "1234"), [260, four.into()]);
    assert_eq!(ids("qwen2", "1234").len(), 4);
    assert_eq!(ids("smollm", "1234").len(), 4);
    assert_eq!(ids("default", "1234"), [260, four.into()]);
}

#[test]
fn contradictions_are_named() {
    let says = |vocab: GgufVocab, part: &str| {
        let error = Tokenizer::from_vocab(vocab).err().unwrap().to_string();
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    };
    says(GgufVocab { model: "bert".into(), ..small_vocab("gpt-2") }, "`bert`");
    says(small_vocab("unheard-of"), "`unheard-of`");
    says(GgufVocab { merges: None, ..small_vocab("gpt-2") }, "merges");
    says(GgufVocab { merges: Some(vec!["t q".into()]), ..small_vocab("gpt-2") }, "`tq`");
    says(GgufVocab { bos: Some(259), ..small_vocab("gpt-2") }, "below 259");
    says(GgufVocab { token_types: Some(vec![1]), ..small_vocab("gpt-2") }, "259 `tokenizer.ggml.token_type`");
    says(GgufVocab { add_eos: Some(true), eos: None, ..small_vocab("gpt-2") }, "eos");
    says(GgufVocab { model: "llama".into(), ..small_vocab("gpt-2") }, "scores");
    says(GgufVocab { tokens: vec![], ..small_vocab("gpt-2") }, "found 0");
}

/// The same vocabulary as Hugging Face writes it.
fn small_json() -> String {
    let vocab = small_vocab("gpt-2");
    let table: std::collections::BTreeMap<_, _> = vocab.tokens[..258].iter().zip(0u32..).collect();
    let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;
    format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{{"id": 258, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}}],
        "pre_tokenizer": {byte_level}, "decoder": {byte_level},
        "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {},
            "merges": [["t", "h"], ["th", "e"]]}}}}"#,
        serde_json::to_string(&table).unwrap()
    )
}

#[test]
fn json_and_gguf_agree() {
    let json = Tokenizer::from_json(small_json().as_bytes()).unwrap();
    let gguf = Tokenizer::from_vocab(small_vocab("gpt-2")).unwrap();
    assert_eq!((json.bos(), json.eos(), json.vocab_size()), (Some(258), Some(258), 259));
    for text in ["the thé\n  the 12, it's", "<|endoftext|>", "", " ", "日本 🛰"] {
        let ids = gguf.encode(text, false).unwrap();
        assert_eq!(json.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(json.decode(&ids, true).unwrap(), text);
        assert_eq!(json.encode_template(text, false).unwrap(), gguf.encode_template(text, false).unwrap());
    }
    assert_eq!(json.encode_template("the<|endoftext|>", false).unwrap(), [257, 258]);
    assert!(json.is_control(258));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn byte_level_round_trip(text in any::<String>(), pre in 0..5usize) {
        let pre = ["gpt-2", "llama-bpe", "qwen2", "smollm", "default"][pre];
        let tokenizer = Tokenizer::from_vocab(small_vocab(pre)).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn hostile_vocabularies_do_not_panic(
        tokens in prop::collection::vec("[ab▁<>0x]{0,4}|<0x[0-9A-F]{2}>", 0..12),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        kinds in prop::option::of(prop::collection::vec(-1..8i32, 0..12)),
        merges in prop::collection::vec("[ab]{0,2} [ab]{0,2}|[ab ]{0,4}", 0..6),
        (bos, unk) in (prop::option::of(0..14u32), prop::option::of(0..14u32)),
        model in 0..2usize,
        fit in any::<bool>(),
        text in "[ab▁ <>0x]{0,12}|\\PC{0,8}",
    ) {
        // Lengths that fit reach deeper than lengths that do not.
        let n = tokens.len();
        let scores = if fit { scores.into_iter().chain(std::iter::repeat(0.0)).take(n).collect() } else { scores };
        let kinds = kinds.map(|k| if fit { k.into_iter().chain(std::iter::repeat(1)).take(n).collect() } else { k });
        let vocab = GgufVocab {
            model: ["llama", "gpt2"][model].into(),
            tokens, scores: Some(scores), token_types: kinds, merges: Some(merges), bos, unk, ..GgufVocab::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_vocab(vocab)
            && let Ok(ids) = tokenizer.encode(&text, true)
        {
            tokenizer.decode(&ids, false).unwrap();
            if let Ok(ids) = tokenizer.encode_template(&text, true) {
                tokenizer.decode(&ids, true).unwrap();
            }
        }
    }

    #[test]
    fn damaged_json_does_not_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = small_json().into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = with }
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            let _ = tokenizer.encode("the 12 <|endoftext|>", true);
        }
    }
}

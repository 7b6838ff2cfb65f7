//! Caption scores against pycocoevalcap 1.2: the tokeniser on odd strings, every score on real captions from raw text.

use std::path::PathBuf;

use rscapret_tests::{shared_data, tests_dir};
use rscapret_trainer::cli::score::{Args, score_files};
use rscapret_trainer::dataset::{DatasetConfig, ImageId, Split, load};
use rscapret_trainer::eval::{CorpusScores, PtbTokenizer, Scored, score};
use serde::Deserialize;

/// `../shared/data/metrics`: UCM test, caption 1 against captions 2 to 5.
#[derive(Deserialize)]
struct Reference {
    corpus: Corpus,
    images: Vec<Image>,
}

#[derive(Deserialize)]
#[allow(non_snake_case)]
struct Corpus {
    Bleu_1: f64,
    Bleu_2: f64,
    Bleu_3: f64,
    Bleu_4: f64,
    ROUGE_L: f64,
    CIDEr: f64,
}

#[derive(Deserialize)]
#[allow(non_snake_case)]
struct Image {
    image_id: ImageId,
    hyp_raw: String,
    refs_raw: Vec<String>,
    hyp_tok: String,
    refs_tok: Vec<String>,
    Bleu: [f64; 4],
    ROUGE_L: f64,
    CIDEr: f64,
}

fn reference() -> Option<Reference> {
    let path = shared_data("metrics/ucm_test_hyp1_vs_refs4.json")?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

fn close(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6, "{what}: expected {expected} but found {found}");
}

#[test]
fn tokens_of_odd_strings() {
    let read = |file: &str| std::fs::read_to_string(tests_dir().join("golden/ptb").join(file)).unwrap();
    let (strings, tokens) = (read("strings.txt"), read("tokens.txt"));
    let tokenizer = PtbTokenizer::new().unwrap();
    assert_eq!(strings.lines().count(), tokens.lines().count());
    for (string, tokens) in strings.lines().zip(tokens.lines()) {
        assert_eq!(tokenizer.tokenize(string), tokens, "of {string:?}");
    }
}

#[test]
fn tokens_of_real_captions() {
    let Some(reference) = reference() else { return };
    let tokenizer = PtbTokenizer::new().unwrap();
    for image in &reference.images {
        assert_eq!(tokenizer.tokenize(&image.hyp_raw), image.hyp_tok);
        for (raw, tokens) in image.refs_raw.iter().zip(&image.refs_tok) {
            assert_eq!(&tokenizer.tokenize(raw), tokens);
        }
    }
}

#[test]
fn scores_equal_the_reference_from_the_raw_text_of_the_dataset() {
    let (Some(reference), Some(ucm)) = (reference(), shared_data("ucm/dataset.json")) else { return };
    let (dataset, _) = load(&DatasetConfig::captions_only("ucm", ucm)).unwrap();
    let images: Vec<Scored> = dataset
        .split(Split::Test)
        .map(|item| Scored {
            id: item.id.clone(),
            hypothesis: item.captions[0].clone(),
            references: item.captions[1..].to_vec(),
        })
        .collect();
    let found = score(&images).unwrap();

    assert_eq!(found.images.len(), 210);
    for (found, expected) in found.images.iter().zip(&reference.images) {
        let id = &expected.image_id;
        assert_eq!(&found.image_id, id);
        let scores = found.scores;
        let bleu = [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4];
        for (n, (found, expected)) in bleu.into_iter().zip(expected.Bleu).enumerate() {
            close(&format!("Bleu_{} of {id}", n + 1), found, expected);
        }
        close(&format!("ROUGE_L of {id}"), scores.rouge_l, expected.ROUGE_L);
        close(&format!("CIDEr of {id}"), scores.cider, expected.CIDEr);
    }
    let (found, expected) = (found.corpus, reference.corpus);
    close("Bleu_1", found.bleu_1, expected.Bleu_1);
    close("Bleu_2", found.bleu_2, expected.Bleu_2);
    close("Bleu_3", found.bleu_3, expected.Bleu_3);
    close("Bleu_4", found.bleu_4, expected.Bleu_4);
    close("ROUGE_L", found.rouge_l, expected.ROUGE_L);
    close("CIDEr", found.cider, expected.CIDEr);
}

#[test]
fn json_has_the_names_and_the_order_of_pycocoevalcap() {
    let image = |id: u64, hypothesis: &str| Scored {
        id: ImageId::Number(id),
        hypothesis: hypothesis.to_string(),
        references: vec!["A field .".to_string()],
    };
    let scores = score(&[image(3, "a field"), image(1, "a road")]).unwrap();
    let json: serde_json::Value = serde_json::to_value(&scores).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let metrics = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"];
    assert_eq!(names(&json), [&metrics[..], &["images"]].concat());
    assert_eq!(names(&json["images"][0]), [&["image_id"], &metrics[..]].concat());
    assert_eq!(json["images"][0]["image_id"], 3);
    let back: CorpusScores = serde_json::from_value(json).unwrap();
    assert_eq!(back, scores);
    assert_eq!(score(&[]).unwrap_err().to_string(), "expected at least one image to score but found none");
}

/// A results file over the Karpathy fixture, scored.
fn score_text(hypotheses: &str, split: Split) -> Result<CorpusScores, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    std::fs::write(&path, hypotheses).unwrap();
    let references = tests_dir().join("fixtures/datasets/score.json");
    let args = Args { hypotheses: path, references, split, json: false, per_image: false, jars: None };
    score_files(&args).map_err(|error| {
        let text = error.to_string().replace(&format!("{}/", folder.path().display()), "");
        text.replace(&format!("{}/", tests_dir().join("fixtures/datasets").display()), "")
    })
}

#[test]
fn results_files_must_cover_the_split_exactly() {
    let entry = |id: &str, caption: &str| format!(r#"{{"image_id": {id}, "caption": "{caption}"}}"#);
    let list = |entries: &[String]| format!("[{}]", entries.join(", "));
    let (a, b) = (entry("10", "A field ."), entry("\"11\"", "a road"));

    let scores = score_text(&list(&[b.clone(), a.clone()]), Split::Test).unwrap();
    let ids: Vec<String> = scores.images.iter().map(|image| image.image_id.to_string()).collect();
    assert_eq!(ids, ["10", "11"], "in the order of the references");
    close("Bleu_1", scores.images[0].scores.bleu_1, 1.0);

    let failure = |entries: &[String], split| score_text(&list(entries), split).unwrap_err();
    assert_eq!(
        failure(std::slice::from_ref(&a), Split::Test),
        "results.json: expected captions of all 2 images of split `test` but found none for 1: 11\n\
         caption the whole split: figures of a subset cannot be compared"
    );
    assert_eq!(
        failure(&[a.clone(), b.clone(), entry("12", "x"), entry("\"a.jpg\"", "x")], Split::Test),
        "results.json: expected only ids of the 2 images of split `test` but found 2: 12, \"a.jpg\"\n\
         choose their split with --split, or the references that they belong to"
    );
    assert_eq!(
        failure(&[a.clone(), b.clone(), a.clone()], Split::Test),
        "results.json: expected one caption an image but found more for 1: 10\nkeep one of them"
    );
    assert_eq!(
        failure(std::slice::from_ref(&a), Split::Val),
        "score.json: expected images of split `val` but found 1 train, 0 val, 2 test\nchoose another with --split"
    );
    assert_eq!(
        failure(&[a, r#"{"image_id": 11}"#.to_string()], Split::Test),
        "results.json: entry 1: expected `image_id` and `caption` but found missing field `caption`"
    );
    assert_eq!(
        score_text("{}", Split::Test).unwrap_err(),
        "results.json: expected a COCO results file [{\"image_id\": ..., \"caption\": \"...\"}, ...] but found invalid type: \
         map, expected a sequence at line 1 column 0"
    );
}

#[test]
fn unusable_references_are_no_references() {
    let references: PathBuf = tests_dir().join("fixtures/datasets/coco/captions.json");
    let args = Args {
        hypotheses: references.clone(),
        references,
        split: Split::Val,
        json: false,
        per_image: false,
        jars: None,
    };
    let text = score_files(&args).unwrap_err().to_string();
    assert!(
        text.contains("captions.json: expected at most 0.0 % of the items refused but found 2 of 4 (50.0 %): "),
        "{text}"
    );
}

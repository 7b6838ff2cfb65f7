//! The program as a person or a script uses it: exit codes, help, the shapes of `--json`, and bad input.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::OnceLock,
};

use rscapret_tests::{
    command::rscapret,
    golden::Golden,
    tests_dir,
    tiny::{CONTEXT, JOINT_SIZE, write_bundle},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tiny bundle, written once.
fn bundle() -> &'static str {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        write_bundle(folder.path(), 1);
        folder
    });
    folder.path().to_str().unwrap()
}

/// A file of the golden folder.
fn golden(name: &str) -> String {
    tests_dir().join("golden").join(name).to_str().unwrap().to_string()
}

fn photo() -> String {
    golden("preprocess/photo-97x61.jpg")
}

fn call<S: AsRef<str>>(arguments: &[S]) -> Output {
    rscapret().args(arguments.iter().map(AsRef::as_ref)).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard output of a call that succeeds and has nothing to complain of.
fn succeeds<S: AsRef<str>>(arguments: &[S]) -> String {
    let output = call(arguments);
    let command: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{command:?}");
    text(&output.stdout).to_string()
}

fn json<S: AsRef<str>>(arguments: &[S]) -> Value {
    serde_json::from_str(&succeeds(arguments)).unwrap()
}

/// Standard output and standard error of a call that fails, and says so once and without a panic.
fn fails<S: AsRef<str>>(arguments: &[S]) -> (String, String) {
    let output = call(arguments);
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{error}");
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    (out.to_string(), error.to_string())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

// --- help and usage -----------------------------------------------------------------------------------------------

#[test]
fn every_subcommand_explains_itself() {
    let help = succeeds(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in ["caption", "index", "search", "inspect", "tokenize", "embed", "perplexity", "score"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    for name in names.into_iter().filter(|name| *name != "help") {
        let long = succeeds(&[name, "--help"]);
        assert!(long.contains(&format!("Usage: rscapret {name}")), "{long}");
        assert!(long.contains("Example") && long.contains(&format!("\n  rscapret {name} ")), "{name} has no examples");
        assert!(succeeds(&[name, "-h"]).len() <= long.len());
    }
    assert_eq!(succeeds(&["--version"]), concat!("rscapret ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong = [
        "",
        "dance",
        "caption",
        "caption a.jpg --beam 0",
        "caption a.jpg --beam 4 --temperature 1",
        "caption a.jpg --beam 4 --seed 1",
        "caption a.jpg --length-penalty 2",
        "caption a.jpg --temperature hot",
        "caption a.jpg --temperature -1",
        "caption a.jpg --top-p 1.5",
        "caption a.jpg --max-tokens 0",
        "index photos",
        "search a.idx",
        "search a.idx words --image a.jpg",
        "search a.idx words --top -1",
        "tokenize model.gguf",
        "tokenize model.gguf words --lines a.txt",
        "embed --bundle b",
        "embed --bundle b --text words --image a.jpg",
        "perplexity a.txt",
        "score a.json",
        "inspect",
        "inspect a.gguf --colour",
    ];
    for line in wrong {
        let output = call(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(output.stdout.is_empty() && text(&output.stderr).contains("--help"), "{line}: {output:?}");
    }
}

// --- what scripts rely on -------------------------------------------------------------------------------------------

#[test]
fn captions() {
    let images = [photo(), golden("preprocess/61x97.png"), golden("preprocess/lossless.webp")];
    let caption = |more: &[&str]| {
        let mut arguments = vec!["caption", "--bundle", bundle(), "--json"];
        arguments.extend(images.iter().map(String::as_str));
        arguments.extend(more);
        json(&arguments)
    };
    let greedy = caption(&[]);
    let list = greedy.as_array().unwrap();
    assert_eq!(list.iter().map(|c| c["image"].as_str().unwrap()).collect::<Vec<_>>(), images);
    for one in list {
        assert_eq!(keys(one), ["image", "caption"]);
        assert!(one["caption"].is_string());
    }
    assert_eq!(caption(&["--beam", "1"]), greedy);
    assert_eq!(caption(&["--temperature", "0"]), greedy);
    let drawn = caption(&["--temperature", "1.5", "--top-p", "0.95", "--seed", "7"]);
    assert_eq!(caption(&["--temperature", "1.5", "--top-p", "0.95", "--seed", "7"]), drawn);
    assert_ne!(caption(&["--temperature", "1.5", "--top-p", "0.95", "--seed", "8"]), drawn);
    assert_eq!(caption(&["--beam", "3"]).as_array().unwrap().len(), 3);

    let plain = succeeds(&["caption", &images[0], "--bundle", bundle(), "--max-tokens", "3"]);
    assert!(plain.starts_with(&format!("{}: ", images[0])), "{plain}");
    assert_eq!(plain.lines().count(), 1);
}

#[test]
fn an_index_is_searched_by_words_and_by_images() {
    let folder = tempfile::tempdir().unwrap();
    let album = folder.path().join("album");
    fs::create_dir_all(album.join("more")).unwrap();
    for (from, to) in [("photo-97x61.jpg", "photo.jpg"), ("61x97.png", "b.PNG"), ("lossless.webp", "more/c.webp")] {
        fs::copy(golden("preprocess/") + from, album.join(to)).unwrap();
    }
    fs::write(album.join("notes.txt"), "no image").unwrap();
    let file = folder.path().join("album.idx").to_str().unwrap().to_string();
    let album = album.to_str().unwrap();
    assert_eq!(succeeds(&["index", album, "-o", &file, "--bundle", bundle()]), format!("{file}: 3 images\n"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no partial file is left");

    let found = json(&["search", &file, "--image", &photo(), "--bundle", bundle(), "--json"]);
    let hits = found.as_array().unwrap();
    assert_eq!(hits.iter().map(keys).collect::<Vec<_>>(), vec![["image", "score"]; 3]);
    assert_eq!(hits[0]["image"], "photo.jpg");
    assert!((hits[0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let mut names: Vec<&str> = hits.iter().map(|hit| hit["image"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b.PNG", "more/c.webp", "photo.jpg"]);

    let found = json(&["search", &file, "the harbour", "--bundle", bundle(), "--json", "--top", "2"]);
    let scores: Vec<f64> = found.as_array().unwrap().iter().map(|hit| hit["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 2 && scores[0] >= scores[1], "{scores:?}");

    // The score is the cosine of what `embed` prints.
    let vector = |arguments: &[&str]| {
        let mut all = vec!["embed", "--bundle", bundle(), "--json"];
        all.extend(arguments);
        let value = json(&all);
        assert_eq!(keys(&value), ["embedding"]);
        let vector: Vec<f64> = value["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(vector.len(), JOINT_SIZE);
        vector
    };
    let best = Path::new(album).join(found[0]["image"].as_str().unwrap());
    let (words, image) = (vector(&["--text", "the harbour"]), vector(&["--image", best.to_str().unwrap()]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&words, &image) - scores[0]).abs() < 1e-5);
    assert!((dot(&words, &words) - 1.0).abs() < 1e-5 && (dot(&image, &image) - 1.0).abs() < 1e-5);

    let plain = succeeds(&["search", &file, "the harbour", "--bundle", bundle()]);
    assert_eq!(plain.lines().count(), 3);
}

#[test]
fn token_ids() {
    let model = format!("{}/llm.gguf", bundle());
    // The tiny vocabulary: 0 ends and begins texts, byte b is b + 1, then `th` and `the`.
    assert_eq!(succeeds(&["tokenize", &model, "the a", "--json"]), "{\"ids\":[0,258,33,98]}\n");
    assert_eq!(json(&["tokenize", bundle(), "the a", "--json", "--no-special"]), json!({"ids": [258, 33, 98]}));
    let shown = succeeds(&["tokenize", &model, "the\t"]);
    assert_eq!(shown, "3 tokens\n      0  <|endoftext|>\n    258  \"the\"\n     10  \"\\t\"\n");

    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines.txt");
    fs::write(&lines, "a\n\nb c\r\nlast").unwrap();
    let lines = lines.to_str().unwrap();
    assert_eq!(
        succeeds(&["tokenize", &model, "--lines", lines, "--json"]),
        "{\"ids\":[0,98]}\n{\"ids\":[0]}\n{\"ids\":[0,99,33,100]}\n{\"ids\":[0,109,98,116,117]}\n"
    );
    assert_eq!(succeeds(&["tokenize", &model, "--lines", lines, "--no-special"]).lines().nth(2), Some("99 33 100"));
}

#[test]
fn log_probabilities_are_those_of_the_golden_logits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids.txt");
    for name in ["llama-multi-head", "llama-grouped-tied", "llama-rope3"] {
        let golden_model = Golden::open(name);
        let ids = &golden_model.ids()[0];
        fs::write(&file, ids.iter().map(|id| format!("{id} ")).collect::<String>()).unwrap();
        let model = golden(&format!("models/{name}"));
        let result = json(&["perplexity", "--llm", &model, file.to_str().unwrap(), "--ids", "--json"]);
        assert_eq!(keys(&result), ["logprobs", "perplexity"]);
        let logprobs: Vec<f64> = result["logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(logprobs.len(), ids.len() - 1);
        let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
        assert!((result["perplexity"].as_f64().unwrap() / (-mean).exp() - 1.0).abs() < 1e-9);

        // Rows of positions 4, 9, ...
        let (logits, shape) = golden_model.tensor("logits");
        let mut compared = 0;
        for (row, logits) in logits.chunks_exact(shape[2]).take(shape[1]).enumerate() {
            let at = 4 + 5 * row;
            let Some(&next) = ids.get(at + 1) else { continue };
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let expected = f64::from(logits[next as usize]) - sum.ln();
            assert!((logprobs[at] - expected).abs() < 1e-4, "{name}, {at}: {} {expected}", logprobs[at]);
            compared += 1;
        }
        assert!(compared > 0, "{name}");
    }
}

#[test]
fn perplexity_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let (words, ids) = (folder.path().join("words.txt"), folder.path().join("ids.txt"));
    fs::write(&words, "the a\n").unwrap();
    fs::write(&ids, "0, 258, 33, 98").unwrap();
    let model = format!("{}/llm.gguf", bundle());
    let (words, ids) = (words.to_str().unwrap(), ids.to_str().unwrap());
    let of_words = json(&["perplexity", "--llm", &model, words, "--json"]);
    assert_eq!(of_words["logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(json(&["perplexity", "--llm", &model, ids, "--ids", "--json"]), of_words);
    let plain = succeeds(&["perplexity", "--llm", &model, words]);
    assert!(plain.lines().count() == 7 && plain.contains("over 3 tokens"), "{plain}");

    fs::write(ids, "1 ".repeat(CONTEXT + 1)).unwrap();
    let refused = |arguments: &[&str], expected: &str| {
        let error = fails(arguments).1;
        assert!(error.contains(expected), "{error}");
    };
    let with_ids = ["perplexity", "--llm", &model, ids, "--ids"];
    refused(&with_ids, &format!("expected at most {CONTEXT} tokens, the model's context, but found {}", CONTEXT + 1));
    for (content, expected) in [("1", "at least 2 tokens but found 1"), ("1 999", "below 264"), ("1 x", "found `x`")] {
        fs::write(ids, content).unwrap();
        refused(&with_ids, expected);
    }
}

#[test]
fn contents_of_files() {
    let tensor_keys = ["name", "shape", "type", "bytes"];
    for file in [format!("{}/llm.gguf", bundle()), golden("weights/single.safetensors")] {
        let found = json(&["inspect", &file, "--json"]);
        assert!(found["metadata"].is_object());
        let tensors = found["tensors"].as_array().unwrap();
        assert!(!tensors.is_empty() && tensors.iter().all(|tensor| keys(tensor) == tensor_keys), "{file}");
    }
    let found = json(&["inspect", &format!("{}/llm.gguf", bundle()), "--json"]);
    assert_eq!(found["metadata"]["llama.block_count"], 2);
    let embedding = json!({"name": "token_embd.weight", "shape": [264, 32], "type": "F32", "bytes": 264 * 32 * 4});
    assert!(found["tensors"].as_array().unwrap().contains(&embedding));

    let whole = json(&["inspect", bundle(), "--json"]);
    assert_eq!((&whole["kind"], &whole["metadata"]["name"]), (&json!("bundle v1"), &json!("tiny")));
    let maps = whole["tensors"].as_array().unwrap().iter().filter(|t| t["file"] == "projections.safetensors");
    assert_eq!(maps.count(), 8);
    let page = succeeds(&["inspect", bundle()]);
    for expected in ["bundle v1 `tiny`", "licences\n  weights  CC0-1.0", "token_embd.weight", "ret_embedding"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
}

#[test]
fn scores_have_the_names_of_pycocoevalcap() {
    let folder = tempfile::tempdir().unwrap();
    let (results, references) = (folder.path().join("results.json"), folder.path().join("dataset.json"));
    let image = |id: u64, caption: &str| {
        json!({"imgid": id, "filename": format!("{id}.jpg"), "split": "test", "sentids": [id],
            "sentences": [{"raw": caption, "tokens": [], "imgid": id, "sentid": id}]})
    };
    let dataset = json!({"dataset": "x", "images": [image(3, "a river runs by"), image(9, "many boats lie here")]});
    fs::write(&references, dataset.to_string()).unwrap();
    let hypotheses =
        json!([{"image_id": 9, "caption": "many boats lie here"}, {"image_id": 3, "caption": "a river runs by"}]);
    fs::write(&results, hypotheses.to_string()).unwrap();
    let (results, references) = (results.to_str().unwrap(), references.to_str().unwrap());
    let scores = json(&["score", results, references, "--json"]);
    for name in ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"] {
        assert!((scores[name].as_f64().unwrap() - 1.0).abs() < 1e-6, "{name}: {scores}");
    }
    assert!((scores["CIDEr"].as_f64().unwrap() - 10.0).abs() < 1e-6);
    assert_eq!(scores["images"].as_array().unwrap().len(), 2);

    fs::write(results, "[]").unwrap();
    let error = fails(&["score", results, references]).1;
    assert!(error.contains("found none for 2: 3, 9"), "{error}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child =
        rscapret().args(["inspect", bundle()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

// --- bad input --------------------------------------------------------------------------------------------------------

/// The beginning of a PNG that says it is of this size: its header, and a few compressed bytes.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[0x78, 0x9c, 0x63])] {
        let chunk = [kind, data].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(chunk);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}

/// A folder with one good image and those that are none, and what is said of each.
fn broken_images() -> (TempDir, Vec<(PathBuf, &'static str)>) {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(photo()).unwrap();
    let huge = png_header(60_000, 60_000);
    let broken: [(&str, &[u8], &str); 6] = [
        (
            "words.jpg",
            b"This is no picture.\n",
            "expected a JPEG, PNG, WebP or TIFF picture but found bytes that begin",
        ),
        ("huge.png", &huge, "at most 16384x16384 pixels but found 60000x60000"),
        ("header.png", &huge[..33], "expected a whole PNG but found a damaged one"),
        ("empty.tif", b"", "expected a picture but found no bytes"),
        ("cut.jpg", &good[..good.len() / 2], "found the JPEG cut short"),
        ("other.gif.png", b"GIF89a\x01\0\x01\0\0\0\0;", "expected a JPEG, PNG, WebP or TIFF picture but found GIF"),
    ];
    let broken = broken.map(|(name, bytes, expected)| {
        fs::write(folder.path().join(name), bytes).unwrap();
        (folder.path().join(name), expected)
    });
    fs::write(folder.path().join("good.jpg"), good).unwrap();
    (folder, broken.into())
}

#[test]
fn images_that_are_none_are_named_and_the_others_go_on() {
    let (folder, broken) = broken_images();
    let mut arguments = vec!["caption".to_string(), "--bundle".into(), bundle().into(), "--json".into()];
    arguments.extend(broken.iter().map(|(path, _)| path.display().to_string()));
    arguments.push(folder.path().join("absent.png").display().to_string());
    let good = folder.path().join("good.jpg").display().to_string();
    arguments.push(good.clone());
    let (out, error) = fails(&arguments);
    let captions: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(captions.as_array().unwrap().len(), 1);
    assert_eq!(captions[0]["image"], good);
    for (path, expected) in &broken {
        let line = error.lines().find(|line| line.contains(&format!("{}: ", path.display())));
        assert!(line.is_some_and(|line| line.starts_with("error: ") && line.contains(expected)), "{expected}: {error}");
    }
    assert!(error.contains("absent.png: expected a readable file but found"), "{error}");
    assert!(error.ends_with("error: expected 8 readable pictures but found 7 that are not, named above\n"), "{error}");

    let index = folder.path().join("all.idx").display().to_string();
    let (out, error) = fails(&["index", folder.path().to_str().unwrap(), "-o", &index, "--bundle", bundle()]);
    assert_eq!(out, format!("{index}: 1 image\n"));
    assert_eq!(error.matches("error: ").count(), broken.len() + 1, "{error}");
    let found = json(&["search", &index, "words", "--bundle", bundle(), "--json"]);
    assert_eq!((found.as_array().unwrap().len(), &found[0]["image"]), (1, &json!("good.jpg")));
}

#[test]
fn an_image_that_is_none_leaves_no_index() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("x.idx");
    let arguments = ["index", folder.path().to_str().unwrap(), "-o", index.to_str().unwrap(), "--bundle", bundle()];
    assert!(fails(&arguments).1.contains("expected images (.jpg"));
    fs::write(folder.path().join("words.jpg"), "no picture").unwrap();
    fails(&arguments);
    assert!(!index.exists());
}

#[test]
fn damaged_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(format!("{}/llm.gguf", bundle())).unwrap();
    let cut = folder.path().join("cut.gguf");
    let words = folder.path().join("words.txt");
    fs::write(&words, "the").unwrap();
    let (cut, words) = (cut.to_str().unwrap(), words.to_str().unwrap());
    for len in [0, 3, 20, 400, whole.len() / 2, whole.len() - 1] {
        fs::write(cut, &whole[..len]).unwrap();
        for arguments in [&["inspect", cut][..], &["tokenize", cut, "the"], &["perplexity", "--llm", cut, words]] {
            let error = fails(arguments).1;
            assert!(error.starts_with(&format!("error: {cut}: ")), "{len}: {error}");
        }
    }
    let error = fails(&["inspect", words]).1;
    assert!(error.contains("expected a GGUF, a safetensors file or a bundle's folder"), "{error}");
    let error = fails(&["perplexity", "--llm", folder.path().to_str().unwrap(), words]).1;
    assert!(error.contains("config.json: expected a readable file but found"), "{error}");
}

#[test]
fn a_bundle_whose_files_are_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_bundle(folder.path(), 2);
    let other = folder.path().to_str().unwrap();
    let image = photo();

    let index = folder.path().join("x.idx").display().to_string();
    let album = tempfile::tempdir().unwrap();
    fs::copy(&image, album.path().join("a.jpg")).unwrap();
    succeeds(&["index", album.path().to_str().unwrap(), "-o", &index, "--bundle", other]);
    let error = fails(&["search", &index, "words", "--bundle", bundle()]).1;
    assert!(error.contains("expected an index of bundle") && error.ends_with("index the pictures again\n"), "{error}");

    let vision = folder.path().join("vision.gguf");
    let mut bytes = fs::read(&vision).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&vision, &bytes).unwrap();
    for arguments in [
        &["caption", &image, "--bundle", other][..],
        &["embed", "--text", "words", "--bundle", other],
        &["search", &index, "words", "--bundle", other],
        &["inspect", other],
    ] {
        let (out, error) = fails(arguments);
        assert_eq!(out, "");
        assert!(error.starts_with(&format!("error: {other}: vision.gguf: expected sha256 ")), "{error}");
    }
    fs::OpenOptions::new().append(true).open(&vision).unwrap().write_all(b"more").unwrap();
    assert!(fails(&["inspect", other]).1.contains("vision.gguf: expected "));
    let error = fails(&["caption", &image, "--bundle", "no/such/folder"]).1;
    assert!(
        error.contains("no/such/folder: expected a bundle's folder but found none\nname one with --bundle"),
        "{error}"
    );
}

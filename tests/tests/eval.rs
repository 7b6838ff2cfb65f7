//! `rscapret eval`: one table over several datasets, CLIP's own retrieval beside it, and the Java programs of METEOR and
//! SPICE, whose part a script plays that speaks as they do.

use std::{fs, path::Path, process::Output};

use rscapret_tests::{command::rscapret, golden::Golden, java, tests_dir, tiny::write_bundle};
use serde_json::{Value, json};

/// Two datasets of three and two test images, and the TOML that names them.
fn write_data(folder: &Path) {
    let images = folder.join("images");
    fs::create_dir_all(&images).unwrap();
    for name in ["61x97.png", "64x64.png", "97x61.png"] {
        fs::copy(tests_dir().join("golden/preprocess").join(name), images.join(name)).unwrap();
    }
    let head = "image,caption,caption_2,split\n";
    fs::write(
        folder.join("a.csv"),
        format!("{head}61x97.png,a road,a field,test\n64x64.png,a lake,a road,test\n97x61.png,a port,a pier,test\n"),
    )
    .unwrap();
    fs::write(folder.join("b.csv"), format!("{head}61x97.png,a road,a field,test\n64x64.png,a lake,a car,test\n"))
        .unwrap();
    let table = |name: &str, file: &str| {
        let (annotations, images) = (folder.join(file).display().to_string(), images.display().to_string());
        format!("[[dataset]]\nname = '{name}'\nannotations = '{annotations}'\nimages = '{images}'\n")
    };
    fs::write(folder.join("data.toml"), table("First", "a.csv") + &table("Second set", "b.csv")).unwrap();
}

/// A Hugging Face folder of the golden CLIP, with a vocabulary of letters.
fn write_clip(folder: &Path) {
    let golden = Golden::open("clip-quick-gelu");
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), &golden.config).unwrap();
    fs::write(folder.join("model.safetensors"), &golden.weights).unwrap();
    fs::write(folder.join("preprocessor_config.json"), r#"{"size": {"shortest_edge": 24}, "crop_size": 24}"#).unwrap();
    let letters = ('a'..='w').flat_map(|c| [c.to_string(), format!("{c}</w>")]);
    let mut vocabulary: Vec<String> = letters.collect();
    vocabulary.resize_with(48, String::new);
    vocabulary[46] = "unused".into();
    vocabulary[47] = "unused too".into();
    vocabulary.extend(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let table: serde_json::Map<String, Value> = vocabulary.into_iter().zip((0..).map(Value::from)).collect();
    fs::write(folder.join("vocab.json"), Value::from(table).to_string()).unwrap();
    fs::write(folder.join("merges.txt"), "#version: 0.2\n").unwrap();
}

fn eval(folder: &Path, more: &[&str]) -> Output {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec!["eval".to_string(), "--bundle".into(), path("bundle"), "--data".into(), path("data.toml")];
    arguments.extend(more.iter().map(ToString::to_string));
    rscapret().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn every_dataset_and_every_baseline_has_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_data(folder);
    // Two runs of `clip finetune`, whose folders are both called `model`.
    let clips = ["first/model", "second/model"].map(|name| folder.join(name));
    clips.iter().for_each(|clip| write_clip(clip));
    fs::create_dir(folder.join("bundle")).unwrap();
    write_bundle(&folder.join("bundle"), 1);
    let out = folder.join("out");
    let (out, clips) = (out.to_str().unwrap(), clips.each_ref().map(|clip| clip.to_str().unwrap()));

    let clip = ["--baseline", "clip", "--clip", clips[0], "--clip", clips[1]];
    let output = eval(folder, &[&["--beam", "1,2", "--beam", "2", "--out", out], &clip[..]].concat());
    let table = stdout(&output);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let starts: Vec<String> =
        rows.iter().map(|row| row.split('|').take(4).map(str::trim).collect::<Vec<_>>().join("|")).collect();
    let models = ["tiny", "tiny, beam 2", "CLIP first", "CLIP second"];
    let of = |data: &str| models.map(|model| format!("|{model}|{data}"));
    assert_eq!(starts, [of("First test|3"), of("Second set test|2")].concat());
    assert!(table.contains("not run") && table.contains("pip download"), "{table}");

    let scores: Value = serde_json::from_slice(&fs::read(folder.join("out/scores.json")).unwrap()).unwrap();
    let row = |at: usize| &scores["rows"][at];
    assert_eq!([0, 1, 2].map(|at| &row(at)["beams"]), [&json!(1), &json!(2), &Value::Null]);
    assert_eq!(row(0)["captions"], 6);
    assert!(row(0)["Bleu_4"].is_f64() && row(2).get("Bleu_4").is_none() && row(0).get("METEOR").is_none());
    // Beams change captions, and nothing else.
    assert_eq!(row(0)["mean_recall"], row(1)["mean_recall"]);
    for at in 0..8 {
        let (own, same) = (&row(at)["mean_recall"], &row(at)["same_string"]["mean_recall"]);
        assert!((0.0..=100.0).contains(&own.as_f64().unwrap()) && same.as_f64() >= own.as_f64(), "{own} {same}");
        // Of two or three images, every one is among the first five.
        assert_eq!(row(at)["t2i_R@5"], 100.0);
    }
    assert!(fs::read_to_string(folder.join("out/scores.md")).unwrap().contains("| mR own-image |"));
    let captions: Value =
        serde_json::from_slice(&fs::read(folder.join("out/second-set-captions.json")).unwrap()).unwrap();
    assert_eq!(captions.as_array().unwrap().len(), 2);
    assert_eq!(captions[0]["image_id"], "61x97.png");

    // What it wrote is what `score` reads, and the figures are the same.
    for (file, at) in [("second-set-captions.json", 4), ("second-set-beam-2-captions.json", 5)] {
        let (captions, references) = (folder.join("out").join(file), folder.join("b.csv"));
        let output = rscapret().args(["score", "--json"]).arg(captions).arg(references).output().unwrap();
        let again: Value = serde_json::from_str(stdout(&output)).unwrap();
        assert_eq!(again["ROUGE_L"], row(at)["ROUGE_L"], "{file}");
    }
}

/// As training cuts it; the shorter ones beside it are read as if it were not there.
#[test]
fn a_caption_longer_than_the_context_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("bundle")).unwrap();
    write_bundle(&folder.join("bundle"), 1);
    let first = |more: &str| {
        write_data(folder);
        let csv = fs::read_to_string(folder.join("a.csv")).unwrap();
        fs::write(folder.join("a.csv"), csv.replace("a pier", &format!("a pier{more}"))).unwrap();
        let report: Value = serde_json::from_str(stdout(&eval(folder, &["--json"]))).unwrap();
        report["rows"][0].clone()
    };
    // Both are longer, and alike as far as they are read.
    let (long, longer) = (first(&" and a pier".repeat(200)), first(&" and a pier".repeat(300)));
    assert_eq!(long["captions"], 6);
    for key in ["mean_recall", "t2i_R@1", "i2t_R@1"] {
        assert_eq!(long[key], longer[key], "{key}");
    }
}

/// One that ended at an image that cannot be read keeps the captions of those before.
#[test]
fn an_evaluation_that_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_data(folder);
    fs::create_dir(folder.join("bundle")).unwrap();
    write_bundle(&folder.join("bundle"), 1);
    fs::rename(folder.join("images/61x97.png"), folder.join("images/whole.png")).unwrap();
    fs::copy(folder.join("images/64x64.png"), folder.join("images/61x97.png")).unwrap();
    // Only the second dataset has it.
    let b = fs::read_to_string(folder.join("b.csv")).unwrap().replace("61x97.png", "late.png");
    fs::write(folder.join("b.csv"), b).unwrap();
    fs::copy(folder.join("images/whole.png"), folder.join("images/late.png")).unwrap();
    let ask = |out: &str, more: &[&str]| {
        let out = folder.join(out).display().to_string();
        eval(folder, &[&["--beam", "1,2", "--out", &out][..], more].concat())
    };
    let read = |path: &str| fs::read_to_string(folder.join(path)).unwrap();
    stdout(&ask("whole", &[]));
    assert!(!folder.join("whole/begun.jsonl").exists());

    // One that did nothing is nothing to go on with.
    let first = fs::read(folder.join("images/61x97.png")).unwrap();
    fs::write(folder.join("images/61x97.png"), "no picture").unwrap();
    assert_eq!(ask("out", &[]).status.code(), Some(1));
    assert_eq!(read("out/begun.jsonl").lines().count(), 1);
    fs::write(folder.join("images/61x97.png"), first).unwrap();

    fs::write(folder.join("images/late.png"), "no picture").unwrap();
    assert_eq!(ask("out", &[]).status.code(), Some(1));
    let begun = read("out/begun.jsonl");
    assert_eq!(begun.lines().count(), 1 + 3, "{begun}");
    fs::copy(folder.join("images/whole.png"), folder.join("images/late.png")).unwrap();
    let fails = |more: &[&str], expected: &str| {
        let output = ask("out", more);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(expected), "{error}");
        assert_eq!(read("out/begun.jsonl"), begun);
    };
    fails(&[], "begun.jsonl: expected no evaluation here that was begun but found one\ngo on with it by --resume");
    fails(&["--resume", "--beam", "3"], "expected an evaluation of {");

    // As a kill leaves it; and with a caption by which to see that it was not made again.
    let lines: Vec<&str> = begun.lines().collect();
    let mut first: Value = serde_json::from_str(lines[1]).unwrap();
    first["captions"][1] = json!("kept");
    fs::write(folder.join("out/begun.jsonl"), format!("{}\n{first}\n{}\n{}", lines[0], lines[2], &lines[3][..9]))
        .unwrap();
    stdout(&ask("out", &["--resume"]));
    assert!(!folder.join("out/begun.jsonl").exists());
    for name in ["first-captions.json", "second-set-captions.json", "second-set-beam-2-captions.json"] {
        assert_eq!(read(&format!("out/{name}")), read(&format!("whole/{name}")), "{name}");
    }
    let [kept, made] = ["out", "whole"].map(|out| {
        let captions: Value = serde_json::from_str(&read(&format!("{out}/first-beam-2-captions.json"))).unwrap();
        captions.as_array().unwrap().clone()
    });
    assert_eq!((&kept[0]["caption"], &kept[1..]), (&json!("kept"), &made[1..]));
    let recalls = |out: &str| {
        let scores: Value = serde_json::from_str(&read(&format!("{out}/scores.json"))).unwrap();
        scores["rows"].as_array().unwrap().iter().map(|row| row["mean_recall"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(recalls("out"), recalls("whole"));
    assert_eq!(eval(folder, &["--resume"]).status.code(), Some(2));
}

#[test]
fn what_cannot_be_asked_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_data(folder);
    let fails = |more: &[&str]| {
        let output = eval(folder, more);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = fails(&["--baseline", "clip"]);
    assert!(code == Some(2) && error.contains("--clip"), "{error}");
    let (code, error) = fails(&["--captions", "x.json"]);
    assert!(code == Some(1) && error.contains("expected one dataset but found 2"), "{error}");
    let (code, error) = fails(&["--captions", "x.json", "--beam", "1,3"]);
    assert!(code == Some(1) && error.contains("--captions: expected one --beam but found 2"), "{error}");
    let (code, error) = fails(&["--split", "val"]);
    assert!(
        code == Some(1)
            && error.contains("dataset `First`: expected images of split `val` but found 0 train, 0 val, 3 test"),
        "{error}"
    );
    let (code, error) = fails(&["--jars", folder.to_str().unwrap()]);
    assert!(
        code == Some(1) && error.contains("expected meteor/meteor-1.5.jar or spice/spice-1.0.jar but found neither"),
        "{error}"
    );
    fs::write(folder.join("images/64x64.png"), "no picture").unwrap();
    fs::create_dir(folder.join("bundle")).unwrap();
    write_bundle(&folder.join("bundle"), 1);
    let (code, error) = fails(&[]);
    assert!(code == Some(1) && error.contains("64x64.png: expected a JPEG, PNG, WebP or TIFF picture"), "{error}");
}

#[test]
fn meteor_and_spice_are_asked_as_pycocoevalcap_asks_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let path = java::write(folder);
    let references = tests_dir().join("fixtures/datasets/score.json");
    let results =
        write("results.json", r#"[{"image_id": 10, "caption": "A field ."}, {"image_id": 11, "caption": "a road"}]"#);
    let score = |path: String| {
        let mut command = rscapret();
        command.args(["score", "--json"]).arg(&results).arg(&references).arg("--jars").arg(folder.join("jars"));
        let output = command.env("PATH", path).output().unwrap();
        let scores: Value = serde_json::from_str(stdout(&output)).unwrap();
        (scores, String::from_utf8(output.stderr).unwrap())
    };
    // Without its parser SPICE is not run, and says so; METEOR is.
    let (scores, said) = score(path.clone());
    assert!(
        said.contains("not run: ") && said.contains("expected lib/stanford-corenlp-3.6.0.jar but found none"),
        "{said}"
    );
    let each: Vec<f64> = (0..2).map(|at| scores["images"][at]["METEOR"].as_f64().unwrap()).collect();
    assert!(each.iter().all(|score| *score > 0.0));
    assert!((scores["METEOR"].as_f64().unwrap() - (each[0] + each[1])).abs() < 1e-9);
    assert!(scores.get("SPICE").is_none());

    write("jars/spice/lib/stanford-corenlp-3.6.0.jar", "");
    write("jars/spice/lib/stanford-corenlp-3.6.0-models.jar", "");
    let (scores, said) = score(path);
    assert_eq!((&scores["SPICE"], said.as_str()), (&json!(0.25), ""));

    // No Java at all.
    let (scores, said) = score(folder.join("nowhere").display().to_string());
    assert!(said.contains("expected the program `java` but found"), "{said}");
    assert!(scores.get("METEOR").is_none() && scores["Bleu_1"].is_f64());
}

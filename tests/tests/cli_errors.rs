//! What the program says of files and folders that it cannot use: what was expected, what was found, what to do. And what it
//! leaves as it was.

use std::{fs, path::Path, process::Output};

use rscapret_tests::{command::rscapret, tests_dir, tiny::write_bundle};
use serde_json::{Value, json};

fn call(folder: &Path, arguments: &[&str]) -> Output {
    rscapret().args(arguments).current_dir(folder).env("RAYON_NUM_THREADS", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What is said of a call that fails.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    let output = call(folder, arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{arguments:?}: {error}");
    error.to_string()
}

/// A folder with a tiny bundle, a photograph, and a text that is no TOML.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("bundle")).unwrap();
    write_bundle(&at("bundle"), 1);
    fs::copy(tests_dir().join("golden/preprocess/photo-97x61.jpg"), at("photo.jpg")).unwrap();
    fs::write(at("words.txt"), "the a").unwrap();
    fs::write(at("results.json"), "[]").unwrap();
    fs::write(at("bad.toml"), "steps = 1\nbatch =\n").unwrap();
    fs::write(at("unknown.toml"), "colour = 1\n").unwrap();
    folder
}

#[test]
fn files_that_are_not_there_or_are_others() {
    let folder = folder();
    let folder = folder.path();
    let unreadable =
        "none: expected a readable file but found: No such file or directory (os error 2)\nname a TOML file";
    for (arguments, expected) in [
        (&["train", "none", "--run", "run"][..], unreadable),
        (&["pretrain-lm", "none", "--run", "run"], unreadable),
        (&["eval", "--bundle", "bundle", "--data", "none"], unreadable),
        (&["data", "check", "none"], unreadable),
        (&["sweep", "none", "--out", "out"], unreadable),
        (
            &["export", "none", "--out", "out", "--terms", "none"],
            "none: expected the folder of a run but found no config.toml\nname the one that",
        ),
        (&["report", "none"], "metrics.jsonl: expected the metrics of a run but found: No such file"),
        (&["train", "bad.toml", "--run", "run"], "bad.toml: expected a configuration but found: "),
        (&["data", "check", "bad.toml"], "\nat line 2, column 8\n  |\n2 | batch =\n  |"),
        (
            &["pretrain-lm", "unknown.toml", "--run", "run"],
            "unknown.toml: expected a configuration but found: unknown field `colour`, expected one of `training`",
        ),
        (
            &["tokenize", "photo.jpg", "x"],
            "photo.jpg: expected a GGUF, a tokenizer.json or a bundle's folder but found bytes that begin with [ff, d8, ff,",
        ),
        (
            &["tokenize", "results.json", "x"],
            "results.json: expected a GGUF, a tokenizer.json or a bundle's folder but found bytes that begin with [5b, 5d]",
        ),
        (
            &["score", "results.json", "photo.jpg"],
            "photo.jpg: expected a dataset (JSON, .csv, .tsv, .jsonl, or Sydney's text in a .txt) but found bytes that begin",
        ),
        (&["score", "results.json", "words.txt"], "filenames_train.txt: expected a readable file but found"),
        (&["caption", "--bundle", "bundle", "words.txt"], ", which looks like text\n"),
    ] {
        let error = fails(folder, arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    for name in ["run", "out"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
    fs::write(folder.join("tokenizer.json"), "{\"model\": ").unwrap();
    let error = fails(folder, &["tokenize", "tokenizer.json", "x"]);
    assert!(error.contains("tokenizer.json: expected a tokenizer.json but found: EOF while parsing"), "{error}");
}

#[test]
fn a_bundle_is_asked_for_its_language_model() {
    let folder = folder();
    let folder = folder.path();
    let ask = |model| {
        let output = call(folder, &["perplexity", "--llm", model, "words.txt", "--json"]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{model}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(ask("bundle"), ask("bundle/llm.gguf"));
    let path = folder.join("bundle/llm.gguf");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = fails(folder, &["perplexity", "--llm", "bundle", "words.txt"]);
    assert!(error.contains("bundle: llm.gguf: expected sha256 "), "{error}");
}

#[test]
fn questions_without_a_meaning_are_wrong_usage() {
    let folder = folder();
    for (arguments, expected) in [
        (&["search", "a.idx", ""][..], "expected words but found none"),
        (&["search", "a.idx", "   "], "expected words but found none"),
        (&["embed", "--text", ""], "expected words but found none"),
        (&["embed", "--text", "\t"], "expected words but found none"),
        (&["search", "a.idx", "words", "--top", "0"], "expected a whole number of 1 or more but found `0`"),
        (&["search", "a.idx", "words", "--top", "-1"], "expected a whole number of 1 or more but found `-1`"),
        (&["chat", "--top", "0"], "expected a whole number of 1 or more but found `0`"),
        (&["chat", "--context", "0"], "expected a whole number of 1 or more but found `0`"),
        (&["eval", "--data", "a.toml", "--beam", "0"], "but found 0"),
        (&["caption", "a.jpg", "--beam", "0"], "but found 0"),
        (&["caption", "a.jpg", "--beam", "-1"], "expected a whole number of 1 or more but found `-1`"),
        (&["caption", "a.jpg", "--max-tokens", "-1"], "expected a whole number of 1 or more but found `-1`"),
        (
            &["caption", "a.jpg", "--seed", "-1"],
            "expected a whole number from 0 to 18446744073709551615 but found `-1`",
        ),
        (&["caption", "a.jpg", "--temperature", "-1"], "but found -1"),
        (&["caption", "a.jpg", "--top-p", "-0.5"], "but found -0.5"),
        (&["caption", "a.jpg", "--temperature", "hot"], "expected a number but found `hot`"),
    ] {
        let output = call(folder.path(), arguments);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{arguments:?}: {error}");
        assert!(
            error.contains(expected) && error.contains("--help") && !error.contains("-- -"),
            "{arguments:?}: {error}"
        );
    }
}

#[test]
fn help_is_text_for_people() {
    let folder = folder();
    let output = call(folder.path(), &["features", "--help"]);
    let help = text(&output.stdout);
    assert!(help.contains("features = \"features.safetensors\"") && !help.contains('\\'), "{help}");
}

/// Linux takes any bytes as a name.
#[cfg(target_os = "linux")]
#[test]
fn an_index_leaves_out_what_it_cannot_name_or_enter() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    let folder = folder();
    let folder = folder.path();
    let album = folder.join("album");
    fs::create_dir_all(album.join(OsStr::from_bytes(b"d\xff"))).unwrap();
    let photo = fs::read(folder.join("photo.jpg")).unwrap();
    fs::write(album.join("ok.jpg"), &photo).unwrap();
    fs::write(album.join(OsStr::from_bytes(b"x\xff.jpg")), &photo).unwrap();
    let arguments = ["index", "album", "-o", "album.idx", "--bundle", "bundle", "--json"];
    let output = call(folder, &arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for name in ["album/d\u{fffd}", "album/x\u{fffd}.jpg"] {
        let line = format!("error: {name}: expected a name in Unicode but found another\nrename it\n");
        assert!(error.contains(&line), "{error}");
    }
    assert!(error.ends_with("error: expected 3 readable pictures but found 2 that are not, named above\n"), "{error}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told, json!({"index": "album.idx", "images": 1, "refused": 2}));
    let found = call(folder, &["search", "album.idx", "words", "--bundle", "bundle", "--json"]);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found[0]["image"], "ok.jpg");

    // With nothing else in the folder, there is no index.
    fs::remove_file(album.join("ok.jpg")).unwrap();
    fs::remove_file(folder.join("album.idx")).unwrap();
    let error = fails(folder, &arguments);
    assert!(error.ends_with("expected 2 readable pictures but found 2 that are not, named above\n"), "{error}");
    assert!(!folder.join("album.idx").exists());
}

#[test]
fn an_index_that_cannot_be_written_is_told_before_the_bundle_is_loaded() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("album")).unwrap();
    fs::copy(folder.join("photo.jpg"), folder.join("album/a.jpg")).unwrap();
    // No bundle of this name: it would be complained of, had it been looked at.
    let index = |output: &str| fails(folder, &["index", "album", "-o", output, "--bundle", "nothing"]);
    let error = index("none/a.idx");
    assert!(error.starts_with("error: none/a.idx: expected to write the file but found: "), "{error}");
    assert!(error.contains("\nmake the folder one that can be written, or name another"), "{error}");
    let error = index("album");
    assert!(error.starts_with("error: album: expected a file to write but found a folder\n"), "{error}");
    assert!(index("a.idx").contains("nothing: expected a bundle's folder"), "what can be written is no obstacle");
    assert!(!folder.join("a.idx").exists() && !folder.join("a.idx.tmp").exists());
}

#[cfg(unix)]
#[test]
fn an_index_is_written_where_a_link_points_and_never_over_a_pipe() {
    use std::{
        os::unix::fs::{FileTypeExt as _, symlink},
        process::Command,
    };

    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("album")).unwrap();
    fs::copy(folder.join("photo.jpg"), folder.join("album/a.jpg")).unwrap();
    fs::write(folder.join("old.idx"), "old").unwrap();
    symlink("old.idx", folder.join("link.idx")).unwrap();
    let output = call(folder, &["index", "album", "-o", "link.idx", "--bundle", "bundle"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "link.idx: 1 image\n"));
    assert!(fs::symlink_metadata(folder.join("link.idx")).unwrap().is_symlink());
    assert!(fs::read(folder.join("old.idx")).unwrap() != b"old");

    assert!(Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap().success());
    let error = fails(folder, &["index", "album", "-o", "pipe", "--bundle", "bundle"]);
    assert!(error.contains("pipe: expected a file to write but found a pipe or a device\nname another"), "{error}");
    assert!(fs::metadata(folder.join("pipe")).unwrap().file_type().is_fifo());
}

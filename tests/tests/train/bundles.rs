//! What `export` and `merge` make of a trained run: the types that were asked for, where all of it comes from, and a bundle
//! that captions.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{call, config, models, succeeds, train};

/// A run of some steps.
fn trained(folder: &Path) {
    train(&config(4, "prompt = 'from above: '"), &folder.join("run"), false).unwrap();
}

/// What an export of the run says.
fn export(folder: &Path, out: &str, more: &[&str]) -> String {
    let terms = models().join("terms.json").display().to_string();
    let arguments = ["export", "run", "--out", out, "--name", "tiny", "--terms", &terms];
    succeeds(folder, &[&arguments, more].concat())
}

fn inspect(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&succeeds(folder, &["inspect", file, "--json"])).unwrap()
}

fn manifest(folder: &Path, bundle: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(bundle).join("bundle.json")).unwrap()).unwrap()
}

#[test]
fn both_models_have_the_types_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    trained(folder);
    for (more, llm, vision) in [
        (&["--dtype", "f16"][..], "F16", "F16"),
        // A tower is small, and sees less by four bits.
        (&["--dtype", "q4-0"], "Q4_0", "Q8_0"),
        (&["--dtype", "f32", "--vision-dtype", "q4-0"], "F32", "Q4_0"),
        (&["--vision-dtype", "f16"], "Q8_0", "F16"),
    ] {
        let said = export(folder, "bundle", more);
        let types = |file: &str, tensor: &str| {
            let page = inspect(folder, &format!("bundle/{file}"));
            let tensors = page["tensors"].as_array().unwrap().clone();
            tensors.into_iter().find(|found| found["name"] == tensor).unwrap()["type"].clone()
        };
        assert_eq!(types("llm.gguf", "blk.0.attn_q.weight"), llm, "{more:?}");
        assert_eq!(types("vision.gguf", "v.blk.0.attn_q.weight"), vision, "{more:?}");
        // Tried on the first image of the data, as `rscapret caption` would say it.
        let image = models().join("images/0.png").display().to_string();
        let caption = succeeds(folder, &["caption", &image, "--bundle", "bundle"]);
        assert!(caption.len() > image.len() + 2, "{caption}");
        assert_eq!(said.lines().collect::<Vec<_>>()[1..], [caption.trim_end()]);
    }
    // Where the data are gone, on a grey picture.
    let path = folder.join("run/config.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("data.csv", "gone.csv")).unwrap();
    let said = export(folder, "bundle", &[]);
    assert!(said.lines().nth(1).unwrap().starts_with("a grey picture: "), "{said}");
}

#[test]
fn a_bundle_tells_where_all_of_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    trained(folder);
    export(folder, "bundle", &[]);
    let written = fs::read_to_string(folder.join("run/config.toml")).unwrap();
    let (head, text) = written.split_once('\n').unwrap();
    let commit = head.strip_prefix("# commit ").unwrap();

    let training = &manifest(folder, "bundle")["training"];
    assert_eq!((&training["config"], &training["commit"]), (&json!(text), &json!(commit)));
    for (model, key) in [("llm", "max_position_embeddings = 96"), ("vision", "patch_keep = 1.0")] {
        assert_eq!(training[model]["data"], json!(["own (train)"]), "{model}");
        let config = training[model]["config"].as_str().unwrap();
        assert!(config.contains(key) && !config.contains("lambda_c"), "{model}: {config}");
    }
    let page = succeeds(folder, &["inspect", "bundle"]);
    for part in ["\ntraining of llm\n", "\ntraining of vision\n", "  data    own (train)\n"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // The maps alone say of themselves what the bundle says of them, in the run's folder and out of it.
    for file in ["run/projections.safetensors", "bundle/projections.safetensors"] {
        let page = inspect(folder, file);
        let metadata = &page["metadata"];
        assert_eq!((&metadata["commit"], &metadata["config"]), (&json!(commit), &json!(text)), "{file}");
        assert_eq!((&metadata["data"], &metadata["prompt"]), (&json!("[\"own (train)\"]"), &json!("from above: ")));
        assert!(succeeds(folder, &["inspect", file]).contains(commit), "{file}");
    }
}

#[test]
fn parts_become_a_bundle_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    trained(folder);
    export(folder, "bundle", &[]);
    export(folder, "others", &["--dtype", "f32"]);
    fs::create_dir(folder.join("loose")).unwrap();
    for file in ["llm.gguf", "vision.gguf", "projections.safetensors"] {
        fs::copy(folder.join("bundle").join(file), folder.join("loose").join(file)).unwrap();
    }
    let merge = |llm: &str, vision: &str, maps: &str, more: &[&str]| {
        let arguments = ["merge", "--llm", llm, "--vision", vision, "--projections", maps, "--name", "tiny"];
        let (code, out, error) = call(folder, &[&arguments, more].concat());
        if code == Some(0) { Ok(out) } else { Err(error) }
    };
    let read = |path: &str| fs::read(folder.join(path)).unwrap();

    // All parts of one bundle are that bundle, byte for byte.
    let image = models().join("images/1.png").display().to_string();
    let said = merge("bundle", "bundle", "bundle", &["--out", "same", "--image", &image]).unwrap();
    assert_eq!(read("same/bundle.json"), read("bundle/bundle.json"));
    assert_eq!(said.lines().nth(1), succeeds(folder, &["caption", &image, "--bundle", "bundle"]).lines().next());

    // Maps of a bundle between loose models: what is known comes from the bundle.
    let maps = "bundle/projections.safetensors";
    merge("loose/llm.gguf", "loose/vision.gguf", maps, &["--out", "linked", "--link"]).unwrap();
    assert_eq!(manifest(folder, "linked"), manifest(folder, "bundle"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let file = |path: &str| fs::metadata(folder.join(path)).unwrap().ino();
        assert!(file("linked/llm.gguf") == file("loose/llm.gguf") && file("same/llm.gguf") != file("bundle/llm.gguf"));
    }

    // Loose maps say themselves how they were trained, and nobody what the terms are.
    let loose = ["loose/llm.gguf", "loose/vision.gguf", "loose/projections.safetensors"];
    let error = merge(loose[0], loose[1], loose[2], &["--out", "own"]).unwrap_err();
    assert!(error.contains("expected terms of use but found none") && error.contains("--terms"), "{error}");
    fs::write(folder.join("more.json"), r#"[{"part": "album", "terms": "CC-BY-4.0"}]"#).unwrap();
    merge(loose[0], loose[1], loose[2], &["--out", "own", "--terms", "more.json"]).unwrap();
    let (own, bundle) = (manifest(folder, "own"), manifest(folder, "bundle"));
    assert_eq!((&own["files"], &own["training"]["config"]), (&bundle["files"], &bundle["training"]["config"]));
    assert_eq!((&own["training"]["commit"], &own["training"]["llm"]), (&bundle["training"]["commit"], &Value::Null));
    assert_eq!(own["licences"], json!([{ "part": "album", "terms": "CC-BY-4.0" }]));
    // With a model in its bundle, its terms and its origin are known, too.
    merge("bundle", loose[1], loose[2], &["--out", "own", "--terms", "more.json"]).unwrap();
    let own = manifest(folder, "own");
    assert_eq!(own["training"]["llm"], bundle["training"]["llm"]);
    assert_eq!(own["licences"][1], json!({ "part": "all", "terms": "CC0-1.0" }));

    // Maps of other models, maps of no bundle, and what is no model: refused, and nothing is written.
    for (llm, vision, maps, words) in [
        ("others", "bundle", "bundle", "expected maps that were trained for others/llm.gguf, llm_sha256 = "),
        ("bundle", "others", "bundle", "expected maps that were trained for others/vision.gguf, vision_sha256 = "),
        ("bundle", "bundle", "run/projections.safetensors", "expected `llm_sha256` in the metadata but found none\n"),
        ("run/config.toml", "bundle", "bundle", "run/config.toml: expected a GGUF but found another kind of file\n"),
    ] {
        let error = merge(llm, vision, maps, &["--out", "none"]).unwrap_err();
        assert!(error.contains(words) && !folder.join("none").exists(), "{error}");
    }
    // A bundle's part that is not the one of its manifest any more.
    fs::write(folder.join("others/llm.gguf"), read("bundle/llm.gguf")).unwrap();
    let error = merge("others", "bundle", "bundle", &["--out", "none"]).unwrap_err();
    assert!(error.contains("others/llm.gguf: expected sha256 "), "{error}");
}

//! A dataset whose images are partly missing, given to a stage of the program that reads images.

use std::{fs, path::Path, process::Output};

use rscapret_tests::{command::rscapret, tests_dir};
use serde_json::json;

/// Ten images in `dataset.json`, two of which are not in the folder and one is no image's bytes.
fn dataset(folder: &Path, unreadable: bool) {
    let images = folder.join("images");
    fs::create_dir(&images).unwrap();
    let photo = tests_dir().join("golden/preprocess/61x97.png");
    let entry = |i: u64| {
        let name = format!("{i}.png");
        match i {
            3 | 5 => {}
            8 if unreadable => fs::write(images.join(&name), "no picture").unwrap(),
            _ => drop(fs::copy(&photo, images.join(&name)).unwrap()),
        }
        json!({"imgid": i, "filename": name, "split": if i > 8 { "val" } else { "train" },
            "sentences": [{"raw": format!("image number {i} shows a river .")}]})
    };
    let list: Vec<_> = (1..=10).map(entry).collect();
    fs::write(folder.join("dataset.json"), json!({"dataset": "small", "images": list}).to_string()).unwrap();
}

/// One step of the smallest of encoders.
fn pretrain(folder: &Path, max_refused: f64) -> Output {
    let path = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        r#"
training = {{ seed = 1, steps = 1, batch = 4, workers = 1, validate_every = 1 }}
tokenizer = '{tokenizer}'
cache_size = 24
drop_until = 0.0
patch_keep = 1.0
class_weight = 0.0
label_smoothing = 0.0
same_string = "positive"
vision = {{ image_size = 16, patch_size = 8, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, projection_dim = 8 }}
text = {{ hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 16, vocab_size = 258, eos_token_id = 1, projection_dim = 8 }}
optim = {{ lr = 1e-3, beta1 = 0.9, beta2 = 0.98, weight_decay = 0.0, clip = 1.0 }}
[[data]]
classes = "none"
dataset = {{ name = "small", annotations = '{annotations}', images = '{images}', max_refused = {max_refused} }}
"#,
        tokenizer = path("tokenizer.json"),
        annotations = path("dataset.json"),
        images = path("images"),
    );
    fs::write(folder.join("clip.toml"), config).unwrap();
    let arguments = ["pretrain-clip", &path("clip.toml"), "--run", &path(&format!("run-{max_refused}"))];
    rscapret().args(arguments).env("RAYON_NUM_THREADS", "1").output().unwrap()
}

#[test]
fn missing_images_are_named_and_end_it_or_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), false);
    let strict = pretrain(folder.path(), 0.0);
    let error = String::from_utf8(strict.stderr).unwrap();
    assert_eq!(strict.status.code(), Some(1), "{error}");
    assert!(error.contains("`3.png`: missing file") && error.contains("`5.png`: missing file"), "{error}");
    assert!(error.contains("dataset.json: "), "{error}");

    let lenient = pretrain(folder.path(), 0.3);
    let error = String::from_utf8(lenient.stderr).unwrap();
    assert_eq!(lenient.status.code(), Some(0), "{error}");
    assert!(error.contains("small: 2 of 10 items left out") && error.contains("`3.png`: missing file"), "{error}");
    assert!(folder.path().join("run-0.3/model/model.safetensors").exists());
}

#[test]
fn an_image_that_cannot_be_read_is_named_and_counts_as_refused() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), true);
    for (max_refused, code) in [(0.25, 1), (0.3, 0)] {
        let output = pretrain(folder.path(), max_refused);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        let named = "`8.png`: unreadable image: expected a JPEG, PNG, WebP or TIFF picture but found";
        assert!(error.contains("3 of 10") && error.contains(named), "{error}");
    }
}

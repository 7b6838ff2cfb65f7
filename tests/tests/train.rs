//! `rscapret train` on sixteen pairs: it learns them by heart, whatever file the language model comes from, and what goes
//! wrong on the way is told and breaks nothing.

#[path = "train/bundles.rs"]
mod bundles;
#[path = "train/kills.rs"]
mod kills;
#[path = "train/patches.rs"]
mod patches;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use pollster::block_on;
use rscapret::{
    backend::candle::Compute,
    weights::{
        Dtype, TensorSource as _,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};
use rscapret_tests::{backend, command::rscapret, tensors};
use rscapret_trainer::{
    bridge::{self, Config},
    run_dir::RunDir,
};
use serde_json::{Value, json};

/// Pairs of them begin alike: to get them right, the language model must be told which it is by the image.
const CAPTIONS: [&str; 16] = [
    "two planes at an airport",
    "many planes at an airport",
    "two boats in a harbor",
    "many boats in a harbor",
    "a bridge over a river",
    "a bridge over a road",
    "trees beside a river",
    "trees beside a road",
    "a church with a gray roof",
    "a church with a red roof",
    "some cars in a parking lot",
    "some houses near a park",
    "a storage tank in a field",
    "a baseball field near a park",
    "waves on a yellow beach",
    "a small island in the sea",
];

fn call(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = rscapret().args(arguments).current_dir(folder).env("RAYON_NUM_THREADS", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let (code, out, error) = call(folder, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {error}");
    out
}

/// Sixteen images with their captions, a language model that knows such captions, and a random tower: what all tests
/// begin with. Nobody writes into it.
fn models() -> &'static Path {
    static MODELS: OnceLock<PathBuf> = OnceLock::new();
    MODELS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("images")).unwrap();
        let mut rows = "file_name,caption,split\n".to_string();
        for (i, caption) in CAPTIONS.iter().enumerate() {
            // Two colours and the line between them, each image's own.
            let pixel = |x: u32, y: u32| {
                let i = i as u32;
                let side = if i.is_multiple_of(2) { x } else { y } > 3 + i / 2;
                image::Rgb(if side { [i * 16, 255 - i * 16, 90] } else { [40, i * 67 % 256, i * 151 % 256] }.map(|v| v as u8))
            };
            image::RgbImage::from_fn(16, 16, pixel).save(folder.join(format!("images/{i}.png"))).unwrap();
            rows += &format!("{i}.png,{caption},train\n");
        }
        fs::write(folder.join("data.csv"), rows).unwrap();
        let optim = "optim = { lr = 5e-3, beta1 = 0.9, beta2 = 0.98, weight_decay = 0.0, clip = 1.0 }\n";
        let lm = format!(
            "training = {{ seed = 1, steps = 150, batch = 16, workers = 1, validate_every = 1000 }}\n\
             tokenizer = 'tokenizer.json'\nmax_length = 48\nschedule = {{ warmup = 10, decay = 0.5 }}\n\
             model = {{ vocab_size = 258, hidden_size = 64, intermediate_size = 128, num_hidden_layers = 2, num_attention_heads = 4, max_position_embeddings = 96 }}\n\
             {optim}[[data]]\nname = 'own'\nannotations = 'data.csv'\n"
        );
        let clip = format!(
            "training = {{ seed = 1, steps = 1, batch = 16, workers = 1, validate_every = 1000 }}\n\
             tokenizer = 'tokenizer.json'\ncache_size = 16\ndrop_until = 0.0\npatch_keep = 1.0\nclass_weight = 0.0\n\
             label_smoothing = 0.0\nsame_string = 'positive'\n\
             vision = {{ image_size = 16, patch_size = 8, hidden_size = 64, intermediate_size = 64, num_hidden_layers = 1, num_attention_heads = 4, projection_dim = 8 }}\n\
             text = {{ hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 48, vocab_size = 258, eos_token_id = 1, projection_dim = 8 }}\n\
             {optim}[[data]]\nclasses = 'none'\ndataset = {{ name = 'own', annotations = 'data.csv', images = 'images' }}\n"
        );
        fs::write(folder.join("lm.toml"), lm).unwrap();
        fs::write(folder.join("clip.toml"), clip).unwrap();
        succeeds(&folder, &["pretrain-lm", "lm.toml", "--run", "lm"]);
        succeeds(&folder, &["pretrain-clip", "clip.toml", "--run", "clip"]);
        fs::write(folder.join("terms.json"), r#"[{"part": "all", "terms": "CC0-1.0"}]"#).unwrap();
        folder
    })
}

/// A configuration of `train` for the models; `more` lines come first.
fn toml(steps: u64, more: &str) -> String {
    let models = models().display();
    let llm = if more.contains("llm = ") { String::new() } else { format!("llm = '{models}/lm/model'\n") };
    let concatenate = if more.contains("concatenate = ") { "" } else { "concatenate = 0.0\n" };
    format!(
        "{more}\n{llm}{concatenate}clip = '{models}/clip/model'\nvisual_tokens = 4\njoint_size = 32\nlambda_c = 1.0\n\
         lambda_r = 0.5\nsame_string = 'masked'\nfeature_noise = 0.0\nmax_length = 40\n\
         training = {{ seed = 1, steps = {steps}, batch = 16, workers = 1, validate_every = 1000 }}\n\
         optim = {{ lr = 1e-2, beta1 = 0.9, beta2 = 0.95, weight_decay = 0.0, clip = 1.0 }}\n\
         schedule = {{ warmup = 5, decay = 0.0 }}\n\
         [[data]]\nviews = 1\ndataset = {{ name = 'own', annotations = '{models}/data.csv', images = '{models}/images' }}\n"
    )
}

fn config(steps: u64, more: &str) -> Config {
    toml::from_str(&toml(steps, more)).unwrap()
}

fn train(config: &Config, run: &Path, resume: bool) -> rscapret::Result<()> {
    bridge::run(config, &RunDir::open(run, config, resume)?, &backend())
}

/// The losses of a run's log.
fn losses(run: &Path) -> Vec<f64> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64()).collect()
}

fn export(run: &Path, out: &str, more: &[&str]) -> PathBuf {
    let terms = models().join("terms.json").display().to_string();
    let (folder, run) = (run.parent().unwrap(), run.display().to_string());
    let arguments = ["export", &run, "--out", out, "--name", "tiny", "--terms", &terms];
    succeeds(folder, &[&arguments, more].concat());
    folder.join(out)
}

/// Captions and retrieval of the training images by a bundle, as `rscapret eval` finds them.
fn scores(folder: &Path, bundle: &str, config: &str) -> (Vec<String>, Value) {
    fs::write(folder.join("eval.toml"), config).unwrap();
    let arguments =
        ["eval", "--bundle", bundle, "--data", "eval.toml", "--split", "train", "--out", "scores", "--json"];
    let report: Value = serde_json::from_str(&succeeds(folder, &arguments)).unwrap();
    let captions = fs::read(folder.join("scores/own-captions.json")).unwrap();
    let captions: Vec<Value> = serde_json::from_slice(&captions).unwrap();
    let caption = |entry: &Value| entry["caption"].as_str().unwrap().to_string();
    (captions.iter().map(caption).collect(), report["rows"][0].clone())
}

#[test]
fn sixteen_pairs_are_memorised() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = toml(400, "");
    fs::write(folder.join("train.toml"), &text).unwrap();
    succeeds(folder, &["train", "train.toml", "--run", "run"]);
    export(&folder.join("run"), "bundle", &["--dtype", "f32"]);
    let (captions, row) = scores(folder, "bundle", &text);
    let losses = losses(&folder.join("run"));
    assert_eq!(captions, CAPTIONS, "losses {losses:?}");
    assert_eq!([&row["t2i_R@1"], &row["i2t_R@1"]], [100.0, 100.0], "{row}");
}

/// The weights of `model` in two files and their index, in a folder of their own.
fn write_shards(model: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(model.join(name), folder.join(name)).unwrap();
    }
    let whole = block_on(SafetensorsFile::open(fs::read(model.join("model.safetensors")).unwrap())).unwrap();
    let names: Vec<String> = whole.tensors().iter().map(|info| info.name.clone()).collect();
    let mut map = serde_json::Map::new();
    for (part, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", part + 1);
        let fetch = |name: &String| (name.clone(), block_on(whole.fetch(name)).unwrap());
        let mut bytes = Vec::new();
        write_safetensors(&names.iter().map(fetch).collect(), &Default::default(), &mut bytes).unwrap();
        fs::write(folder.join(&file), bytes).unwrap();
        map.extend(names.iter().map(|name| (name.clone(), json!(file))));
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn the_language_model_may_lie_in_shards_or_in_a_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let llm = |path: &Path| format!("llm = '{}'", path.display());
    let (whole, shards) = (folder.join("whole"), folder.join("shards"));
    // Every option that the bundle has to carry.
    let options = "prompt = 'from above: '\nhidden_layer = 1\nlambda_ret = 0.5\nconcatenate = 0.5\n";
    train(&config(20, options), &whole, false).unwrap();
    write_shards(&models().join("lm/model"), &folder.join("llm"));
    train(&config(20, &format!("{options}{}", llm(&folder.join("llm")))), &shards, false).unwrap();
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let [of_whole, of_shards] = [&whole, &shards].map(|run| tensors(&run.join("projections.safetensors")));
    assert!(of_whole == of_shards);
    let exported = read(export(&whole, "bundle", &["--dtype", "f32"]).join("llm.gguf"));
    assert!(exported == read(export(&shards, "bundle-of-shards", &["--dtype", "f32"]).join("llm.gguf")));

    // The same weights as a GGUF; and with matrices of 8 bits, which train a little differently.
    export(&whole, "quantised", &["--dtype", "q8-0"]);
    let expected = losses(&whole);
    for (bundle, bound) in [("bundle", 1e-4), ("quantised", 2e-2)] {
        let (gguf, run) = (folder.join(bundle).join("llm.gguf"), folder.join(format!("{bundle}-run")));
        train(&config(20, &format!("{options}{}", llm(&gguf))), &run, false).unwrap();
        let found = losses(&run);
        let off = expected.iter().zip(&found).map(|(e, f)| (e - f).abs() / e).fold(0.0, f64::max);
        assert!(found.len() == 2 && off < bound, "{bundle}: {expected:?} {found:?}");
        // Into its bundle it goes as it is: by bytes, or as one more name of the file.
        let copy = export(&run, &format!("{bundle}-copied"), &[]);
        assert!(read(copy.join("llm.gguf")) == read(gguf.clone()));
        let linked = export(&run, &format!("{bundle}-linked"), &["--link"]);
        assert!(read(linked.join("bundle.json")) == read(copy.join("bundle.json")));
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let file = |path: PathBuf| fs::metadata(path).unwrap().ino();
            assert!(file(linked.join("llm.gguf")) == file(gguf.clone()) && file(copy.join("llm.gguf")) != file(gguf));
        }
        // Linked into the place where it lies, it stays.
        export(&run, &format!("{bundle}-linked"), &["--link"]);
    }

    // The bundle asks as training did: without that, captions and retrieval are others.
    let (captions, row) = scores(folder, "bundle", &toml(20, ""));
    let path = folder.join("bundle/projections.safetensors");
    let file = block_on(SafetensorsFile::open(read(path.clone()))).unwrap();
    assert_eq!((file.metadata("prompt"), file.metadata("hidden_layer")), (Some("from above: "), Some("1")));
    assert_eq!(file.info("ret_output.weight").unwrap().shape, [1, 64]);
    let tensors = file.tensors().iter().map(|info| (info.name.clone(), block_on(file.fetch(&info.name)).unwrap()));
    let metadata =
        ["llm_sha256", "vision_sha256"].map(|key| (key.to_string(), file.metadata(key).unwrap().to_string()));
    let mut bytes = Vec::new();
    write_safetensors(&tensors.collect(), &metadata.into(), &mut bytes).unwrap();
    let manifest = String::from_utf8(read(folder.join("bundle/bundle.json"))).unwrap();
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    manifest["files"]["projections"]["bytes"] = bytes.len().into();
    manifest["files"]["projections"]["sha256"] = rscapret::bundle::sha256_hex(&bytes).into();
    fs::write(&path, bytes).unwrap();
    fs::write(folder.join("bundle/bundle.json"), manifest.to_string()).unwrap();
    let (others, other) = scores(folder, "bundle", &toml(20, ""));
    assert!(captions != others && row["mean_recall"] != other["mean_recall"], "{captions:?} {row} {other}");

    // Neither folder nor GGUF.
    let csv = models().join("data.csv");
    let error = train(&config(1, &llm(&csv)), &folder.join("none"), false).unwrap_err().to_string();
    assert!(error.contains("data.csv: expected a language model but found another kind of file"), "{error}");
}

/// The bound: losses of 20 steps stay within 2 % of f32's, which each rounds off differently.
#[test]
fn bf16_trains_nearly_as_f32_does_whatever_the_language_model_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let options = "lambda_ret = 0.5\nconcatenate = 0.5\nmicro_batch = 4\n";
    train(&config(20, options), &folder.join("f32"), false).unwrap();
    let expected = losses(&folder.join("f32"));
    export(&folder.join("f32"), "quantised", &["--dtype", "q8-0"]);
    let gguf = format!("{options}llm = '{}'\n", folder.join("quantised/llm.gguf").display());
    let unpacked = format!("{gguf}llm_weights = 'bf16'\n");
    for (run, more) in [("bf16", options), ("stored", &gguf), ("unpacked", &unpacked)] {
        let mut config = config(20, more);
        config.training.compute = Compute::Bf16;
        train(&config, &folder.join(run), false).unwrap();
        let found = losses(&folder.join(run));
        let off = expected.iter().zip(&found).map(|(e, f)| (e - f).abs() / e).fold(0.0, f64::max);
        assert!(found.len() == 2 && off < 2e-2 && found != expected, "{run}: {expected:?} {found:?}");
        // What is trained is f32, and a run says what it was computed in.
        let bytes = fs::read(folder.join(run).join("projections.safetensors")).unwrap();
        let file = block_on(SafetensorsFile::open(bytes)).unwrap();
        assert!(file.tensors().iter().all(|info| info.dtype == Dtype::F32));
        assert!(fs::read_to_string(folder.join(run).join("config.toml")).unwrap().contains("compute = \"bf16\""));
    }
    let error = train(&config(1, &unpacked), &folder.join("none"), false).unwrap_err().to_string();
    assert!(error.contains("expected compute = \"bf16\" in [training] for llm_weights = \"bf16\""), "{error}");
}

#[test]
fn values_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (more, words)) in [
        ("concatenate = 1.5", "expected `concatenate` from 0 to 1 but found 1.5"),
        ("label_smoothing = 1.5", "expected `label_smoothing` from 0 to 1 but found 1.5"),
        ("micro_batch = 0", "expected `micro_batch` to be 1 or more but found 0"),
        ("lambda_ret = -1.0", "expected `lambda_ret` to be 0 or more but found -1"),
        ("hidden_layer = 3", "expected `hidden_layer` from 1 to 2, the language model's layers, but found 3"),
        (
            "concatenate = 1.0\nprompt = 'this is what is seen from above'",
            "expected a language model with a context of at least ",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let error = train(&config(1, more), &folder.path().join(i.to_string()), false).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A run of four steps, checkpointed, to be gone on with to eight.
fn begun(folder: &Path) -> PathBuf {
    let run = folder.join("run");
    train(&config(4, ""), &run, false).unwrap();
    run
}

/// That a run which something befell ends as one that nothing did.
fn ends_as_uninterrupted(run: &Path) {
    let whole = run.with_file_name("whole");
    train(&config(8, ""), &whole, false).unwrap();
    train(&config(8, ""), run, true).unwrap();
    for name in ["projections.safetensors", "checkpoint.safetensors"] {
        assert!(fs::read(run.join(name)).unwrap() == fs::read(whole.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = train(&config(1, ""), &folder.path().join("file/run"), false).unwrap_err().to_string();
    assert!(error.contains("file/run: expected to write the file but found: "), "{error}");
    assert!(error.contains("\nmake the folder one that can be written, or name another"), "{error}");

    // Where it cannot be written any more: something else stands in the checkpoint's way.
    let run = begun(folder.path());
    let before = fs::read(run.join("checkpoint.safetensors")).unwrap();
    fs::create_dir(run.join("checkpoint.safetensors.tmp")).unwrap();
    let error = train(&config(8, ""), &run, true).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors: expected to write the file but found: "), "{error}");
    assert!(fs::read(run.join("checkpoint.safetensors")).unwrap() == before);
    fs::remove_dir(run.join("checkpoint.safetensors.tmp")).unwrap();
    ends_as_uninterrupted(&run);
}

/// Linux has a file whose disk is always full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let run = begun(folder.path());
    let before = fs::read(run.join("checkpoint.safetensors")).unwrap();
    symlink("/dev/full", run.join("checkpoint.safetensors.tmp")).unwrap();
    let error = train(&config(8, ""), &run, true).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors: expected to write the file but found: No space left"), "{error}");
    assert!(error.contains("\nmake room on the disk; what was whole before is intact"), "{error}");
    assert!(fs::read(run.join("checkpoint.safetensors")).unwrap() == before);
    // What could not be written whole is gone, the link with it.
    assert!(fs::symlink_metadata(run.join("checkpoint.safetensors.tmp")).is_err());
    ends_as_uninterrupted(&run);
}

#[test]
fn a_loss_that_is_no_number_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = begun(folder.path());
    let before = fs::read(run.join("checkpoint.safetensors")).unwrap();
    let mut wild = config(8, "");
    wild.optim.lr = 1e39;
    for (seconds, words) in [
        (120.0, "step 6: expected finite gradients but found a norm of NaN\nlower the learning rate and go on"),
        // With a checkpoint due after every step, the broken weights do not become one.
        (0.0, "expected weights to be numbers but found"),
    ] {
        wild.training.checkpoint_seconds = seconds;
        let error = train(&wild, &run, true).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("\nlower the learning rate and go on"), "{error}");
        assert!(fs::read(run.join("checkpoint.safetensors")).unwrap() == before);
    }
    ends_as_uninterrupted(&run);
}

#[test]
fn a_run_goes_on_with_the_data_that_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, data) = (fs::read_to_string(models().join("data.csv")).unwrap(), folder.path().join("data.csv"));
    let text =
        |steps| toml(steps, "").replace(&models().join("data.csv").display().to_string(), &data.display().to_string());
    let config = |steps| toml::from_str::<Config>(&text(steps)).unwrap();
    fs::write(&data, &rows).unwrap();
    let run = folder.path().join("run");
    train(&config(4), &run, false).unwrap();
    let before = fs::read(run.join("checkpoint.safetensors")).unwrap();

    let shrunk: String = rows.lines().take(16).flat_map(|line| [line, "\n"]).collect();
    for (changed, words) in [
        (shrunk, "`own` with 16 and 0 images and 16 captions, but found `own` with 15 and 0 images and 15 captions"),
        (rows.replace("yellow", "golden"), "expected the images and captions that the run began with"),
    ] {
        fs::write(&data, changed).unwrap();
        let error = train(&config(8), &run, true).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("data.json: "), "{error}");
        assert!(error.ends_with("\nrestore the data, or begin a new run in another folder"), "{error}");
        assert!(fs::read(run.join("checkpoint.safetensors")).unwrap() == before);
    }
    fs::write(&data, rows).unwrap();
    ends_as_uninterrupted(&run);
}

#[test]
fn a_batch_that_the_data_cannot_fill_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(4, "");
    config.training.batch = 17;
    let error = train(&config, &folder.path().join("run"), false).unwrap_err().to_string();
    let words = "expected `own` to have 17 images to train on, its share of a batch of 17, but found 16\nlower `batch`";
    assert!(error.starts_with(words), "{error}");
}

#[test]
fn smoothed_labels_train_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let loss = |name: &str, more: &str| {
        let run = folder.path().join(name);
        train(&config(10, more), &run, false).unwrap();
        losses(&run)[0]
    };
    let (plain, smoothed) = (loss("plain", ""), loss("smoothed", "label_smoothing = 0.3"));
    // What is given to tokens that do not come is paid for.
    assert!(smoothed > plain + 0.1, "{smoothed} {plain}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = models().join("lm/model");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer: Value = serde_json::from_slice(&fs::read(model.join("tokenizer.json")).unwrap()).unwrap();
    let refused = |tokenizer: &Value, words: &str| {
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = config(1, &format!("llm = '{}'", folder.path().display()));
        let run = tempfile::tempdir().unwrap();
        let error = train(&config, &run.path().join("run"), false).unwrap_err().to_string();
        assert!(error.starts_with(&folder.path().display().to_string()) && error.contains(words), "{error}");
    };
    let added = |content: &str, id: usize| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let mut more = tokenizer.clone();
    more["added_tokens"].as_array_mut().unwrap().push(added("<more>", 258));
    refused(
        &more,
        "expected a tokenizer of at most 258 ids, the rows of the embedding table, but found 259\n\
         it is another model's: take the tokenizer",
    );
    // Its last letter's place is taken.
    let mut clash = tokenizer.clone();
    let vocab = clash["model"]["vocab"].as_object_mut().unwrap();
    let last = vocab.iter().find(|(_, id)| **id == 257).unwrap().0.clone();
    vocab.remove(&last);
    vocab.insert("[RET]".into(), 257.into());
    refused(&clash, "expected a vocabulary without `[RET]`, which is trained beside it, but found it as id 257");
}

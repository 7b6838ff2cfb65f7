//! The three stages of training, as the trainer runs them on the demo's configurations, on made-up pictures and words;
//! and the features of made-up pictures by a tower of ViT-L/14's shape.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use rscapret::{
    Candle, Error, Result,
    bench::{Random, Row, chosen},
    clip::{ClipVision, ClipVisionConfig, preprocess::PreprocessConfig},
    error::Context,
    weights::Dtype,
};
use rscapret_trainer::{
    bridge,
    dataset::DatasetConfig,
    features::Tower,
    pretrain::{clip, lm},
    run_dir::{RunDir, read_config},
    stage::{TrainingConfig, Workers},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{on_disk, threads};
use crate::tests_dir;

pub(super) const DEMO: &[&str] = &["training/lm/demo", "training/clip/demo", "training/bridge/demo"];

pub(super) const FEATURES: &str = "features/ViT-L-14";

/// Pairs of a step. The trainer's clock of steps starts anew at a validation, so the first half of the steps warms up.
const BATCH: usize = 16;
const STEPS: u64 = 4;
const VALIDATION: usize = 4;

pub(super) fn demo(names: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if !DEMO.iter().any(|name| chosen(names, name)) {
        return Ok(rows);
    }
    let temporary = on_disk(tempfile::tempdir(), "temporary folder")?;
    let folder = temporary.path();
    let dataset = write_dataset(folder)?;
    let bridge = chosen(names, DEMO[2]);

    let mut lm: lm::Config = configuration("demo-lm.toml")?;
    lm.data = vec![DatasetConfig { images: None, ..dataset.clone() }];
    lm.tokenizer = folder.join("tokenizer.json");
    rhythm(&mut lm.training);
    if bridge || chosen(names, DEMO[0]) {
        let seconds = seconds(&folder.join("lm"), &lm, lm::run)?;
        rows.push(samples(DEMO[0], seconds, lm.training.workers, "all of the Llama; captions"));
    }

    let mut clip: clip::Config = configuration("demo-clip.toml")?;
    clip.data = vec![clip::Source { classes: clip::ClassRule::None, dataset: dataset.clone() }];
    clip.tokenizer = folder.join("tokenizer.json");
    rhythm(&mut clip.training);
    clip.drop_until = 1.0;
    if bridge || chosen(names, DEMO[1]) {
        let seconds = seconds(&folder.join("clip"), &clip, clip::run)?;
        let what = format!("both towers, {} of the patches; pairs", clip.patch_keep);
        rows.push(samples(DEMO[1], seconds, clip.training.workers, &what));
    }

    let mut config: bridge::Config = configuration("demo.toml")?;
    config.data = vec![bridge::Source { views: 1, dataset }];
    (config.llm, config.clip) = (folder.join("lm/model"), folder.join("clip/model"));
    rhythm(&mut config.training);
    if bridge {
        let seconds = seconds(&folder.join("bridge"), &config, bridge::run)?;
        let what = format!("projections only, {} visual tokens, features at hand; pairs", config.visual_tokens);
        rows.push(samples(DEMO[2], seconds, config.training.workers, &what));
    }
    rows.retain(|row| chosen(names, &row.name));
    Ok(rows)
}

/// `rscapret features` at the size of `openai/clip-vit-large-patch14`: files are read, decoded and preprocessed while the
/// tower runs.
pub(super) fn features(names: &[String]) -> Result<Vec<Row>> {
    if !chosen(names, FEATURES) {
        return Ok(Vec::new());
    }
    let backend = Candle::cpu();
    let config = ClipVisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        patch_size: 14,
        projection_dim: 768,
        ..ClipVisionConfig::default()
    };
    let weights = Random::new(&backend, |_| Dtype::F32);
    let vision = pollster::block_on(ClipVision::load(&weights, &config))?;
    let tower = Tower::new(&backend, vision, PreprocessConfig::clip(config.image_size));
    let temporary = on_disk(tempfile::tempdir(), "temporary folder")?;
    write_dataset(temporary.path())?;
    let paths: Vec<PathBuf> = (0..BATCH).map(|i| temporary.path().join(format!("images/{i}.png"))).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let workers = Workers::new(1, backend.device())?;
    let begun = Instant::now();
    let features = tower.features(&paths, 1, &workers)?;
    let seconds = begun.elapsed().as_secs_f64();
    if !features.iter().flatten().all(|value| value.is_finite()) {
        return Err(Error::Backend("expected finite features but found others".into()));
    }
    let note = format!("random weights, {BATCH} made-up pictures from PNG files; {}", threads());
    Ok(vec![Row { name: FEATURES.into(), value: BATCH as f64 / seconds, unit: "images/s".into(), note }])
}

fn rhythm(training: &mut TrainingConfig) {
    (training.steps, training.batch, training.validate_every) = (STEPS, BATCH, STEPS / 2);
}

fn configuration<C: DeserializeOwned>(name: &str) -> Result<C> {
    read_config(&tests_dir().join("../trainer/configs").join(name))
}

fn samples(name: &str, seconds: f64, workers: usize, what: &str) -> Row {
    let note = format!("{what} of made-up data, {BATCH} a step, {workers} workers; {}", threads());
    Row { name: name.to_string(), value: BATCH as f64 / seconds, unit: "samples/s".to_string(), note }
}

/// Seconds of a step, by the trainer's own log of the second half.
fn seconds<C: Serialize + DeserializeOwned>(
    folder: &Path,
    config: &C,
    run: fn(&C, &RunDir, &Candle) -> Result<()>,
) -> Result<f64> {
    let dir = RunDir::open(folder, config, false)?;
    run(config, &dir, &Candle::cpu())?;
    let metrics = dir.file("metrics.jsonl");
    let text = on_disk(std::fs::read_to_string(&metrics), metrics.display())?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last = lines.iter().rev().find_map(|line| Some((line["seconds_per_step"].as_f64()?, line["loss"].as_f64()?)));
    match last {
        Some((seconds, loss)) if seconds > 0.0 && loss.is_finite() => Ok(seconds),
        found => Err(Error::Backend(format!("expected a finite loss and its time but found {found:?}"))),
    }
}

/// Pictures of waves and captions of made-up words, as a Karpathy JSON.
fn write_dataset(folder: &Path) -> Result<DatasetConfig> {
    let images = folder.join("images");
    on_disk(std::fs::create_dir(&images), images.display())?;
    let mut state = 1u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut words = Vec::new();
    for _ in 0..1500 {
        let syllable = |next: &mut dyn FnMut(usize) -> usize| {
            ["b", "dr", "f", "k", "l", "m", "pl", "st", "tr", "v"][next(10)].to_string()
                + ["a", "e", "ee", "i", "o", "oa", "u"][next(7)]
                + ["", "n", "r", "s"][next(4)]
        };
        words.push((0..2 + next(3)).map(|_| syllable(&mut next)).collect::<String>());
    }
    let mut entries = Vec::new();
    for i in 0..BATCH + VALIDATION {
        let name = format!("{i}.png");
        let [a, b, c] = [next(40) + 5, next(40) + 5, next(200)].map(|n| n as f32);
        let picture = image::RgbImage::from_fn(192, 192, |x, y| {
            let wave = ((x as f32 / a).sin() + (y as f32 / b).cos()) * 60.0 + 128.0;
            image::Rgb([wave as u8, c as u8, (255.0 - wave) as u8])
        });
        picture.save(images.join(&name)).map_err(|e| Error::Io(e.to_string())).at(&name)?;
        let mut sentence = || (0..8).map(|_| words[next(words.len())].as_str()).collect::<Vec<_>>().join(" ") + " .";
        let sentences: Vec<Value> = (0..30).map(|_| json!({ "raw": sentence() })).collect();
        let split = if i < BATCH { "train" } else { "val" };
        entries.push(json!({ "filename": name, "imgid": i, "split": split, "sentences": sentences }));
    }
    let annotations: PathBuf = folder.join("dataset.json");
    let json = json!({ "images": entries, "dataset": "made up" }).to_string();
    on_disk(std::fs::write(&annotations, json), annotations.display())?;
    Ok(DatasetConfig { images: Some(images), ..DatasetConfig::captions_only("made up", annotations) })
}

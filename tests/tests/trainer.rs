//! Training: the same seed gives the same bytes, and a run that was cut short goes on as if it had not been.

use std::{fs, path::Path, process::Stdio, thread::sleep, time::Duration};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rscapret::{Candle, backend::candle::Compute};
use rscapret_tests::command::rscapret;
use rscapret_trainer::{
    dataset::DatasetConfig,
    optim::{OptimConfig, Schedule},
    pretrain::lm::{Config, ModelConfig, run},
    run_dir::RunDir,
    stage::TrainingConfig,
};
use serde_json::json;

/// Captions without images, in Karpathy's layout.
fn write_captions(path: &Path) {
    let words = ["two", "many", "green", "trees", "planes", "roads", "houses", "are", "near", "a", "river"];
    let image = |i: usize| {
        let caption: Vec<&str> = (0..6).map(|w| words[(i * 7 + w * (i + 3)) % words.len()]).collect();
        let split = if i.is_multiple_of(5) { "val" } else { "train" };
        let raw = caption.join(" ");
        json!({
            "filename": format!("{i}.jpg"), "imgid": i, "split": split, "sentids": [i],
            "sentences": [{ "raw": raw, "tokens": caption, "imgid": i, "sentid": i }],
        })
    };
    let dataset = json!({ "dataset": "tiny", "images": (0..30).map(image).collect::<Vec<_>>() });
    fs::write(path, dataset.to_string()).unwrap();
}

fn config(folder: &Path, steps: u64, workers: usize) -> Config {
    Config {
        training: TrainingConfig {
            seed: 7,
            steps,
            batch: 6,
            workers,
            compute: Compute::F32,
            validate_every: 4,
            patience: None,
            checkpoint_seconds: 120.0,
        },
        tokenizer: folder.join("tokenizer.json"),
        max_length: 16,
        model: ModelConfig {
            vocab_size: 264,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 32,
        },
        optim: OptimConfig { lr: 1e-2, muon_lr: 0.01, weight_decay: 0.01, ..OptimConfig::default() },
        // No decay: a step does not depend on how many there will be.
        schedule: Schedule { warmup: 2, decay: 0.0, ..Schedule::default() },
        data: vec![DatasetConfig::captions_only("tiny", folder.join("captions.json"))],
    }
}

fn weights(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name).join("model/model.safetensors")).unwrap()
}

fn train(folder: &Path, name: &str, steps: u64, workers: usize, resume: bool) {
    let config = config(folder, steps, workers);
    run(&config, &RunDir::open(&folder.join(name), &config, resume).unwrap(), &Candle::cpu()).unwrap();
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_a_resumed_run_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    train(folder, "whole", 8, 2, false);
    train(folder, "again", 8, 2, false);
    assert!(weights(folder, "whole") == weights(folder, "again"), "two runs of one seed differ");
    train(folder, "cut", 5, 2, false);
    assert!(weights(folder, "whole") != weights(folder, "cut"));
    train(folder, "cut", 8, 2, true);
    assert!(weights(folder, "whole") == weights(folder, "cut"), "a resumed run differs from a whole one");

    let lines = fs::read_to_string(folder.join("whole/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["validation"]["loss"].as_f64()).collect();
    assert!(losses.len() == 2 && losses[1] < losses[0], "validation losses: {losses:?}");
}

#[test]
fn a_run_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1, 1);
    RunDir::open(&folder.path().join("run"), &config, false).unwrap();
    let Err(error) = RunDir::open(&folder.path().join("run"), &config, false) else {
        panic!("a second run was let into the folder of the first");
    };
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn training_ends_when_validations_bring_nothing_better() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    let steps = |name: &str, patience: Option<u64>| -> Vec<u64> {
        let mut config = config(folder, 40, 1);
        config.training.patience = patience;
        // A rate at which it only gets worse.
        config.optim = OptimConfig { lr: 30.0, ..OptimConfig::default() };
        config.schedule.warmup = 0;
        run(&config, &RunDir::open(&folder.join(name), &config, false).unwrap()).unwrap();
        let lines = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line.get("validation").is_some()).map(|line| line["step"].as_u64().unwrap()).collect()
    };
    let all = steps("all", None);
    assert_eq!(all, (1..=10).map(|i| 4 * i).collect::<Vec<_>>());
    let patient = steps("patient", Some(2));
    assert!(patient.len() < all.len() && patient[..] == all[..patient.len()], "{patient:?}");
}

/// What a power failure does, ten times at random moments: in a step, in a validation, in the writing of a checkpoint.
#[test]
fn ten_kills_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    let mut config = config(folder, 500, 1);
    config.training.checkpoint_seconds = 0.0;
    fs::write(folder.join("lm.toml"), toml::to_string(&config).unwrap()).unwrap();
    let command = |name: &str, more: &[&str]| {
        let mut command = rscapret();
        command.current_dir(folder).args(["pretrain-lm", "lm.toml", "--run", name]).args(more);
        command.env("RAYON_NUM_THREADS", "1").stderr(Stdio::null());
        command
    };
    assert!(command("whole", &[]).status().unwrap().success());

    let (mut rng, mut kills, mut tries) = (ChaCha8Rng::seed_from_u64(1), 0, 0);
    while kills < 10 {
        tries += 1;
        assert!(tries < 100, "{kills} kills in {tries} runs");
        let again: &[&str] = if folder.join("cut/config.toml").exists() { &["--resume"] } else { &[] };
        let mut run = command("cut", again).spawn().unwrap();
        // Not before it has begun, or it would never get anywhere.
        let log = folder.join("cut/metrics.jsonl");
        let length = || fs::metadata(&log).map_or(0, |data| data.len());
        let before = length();
        while length() <= before && run.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(rng.random_range(0..40)));
        if run.try_wait().unwrap().is_none() {
            run.kill().unwrap();
            kills += 1;
        } else {
            // It ended first: once more from the start.
            fs::remove_dir_all(folder.join("cut")).unwrap();
        }
        run.wait().unwrap();
    }
    assert!(command("cut", &["--resume"]).status().unwrap().success());
    assert!(weights(folder, "whole") == weights(folder, "cut"), "ten kills show in the weights");
    let log = |name: &str| -> Vec<(u64, f64)> {
        let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?))).collect()
    };
    assert_eq!(log("whole"), log("cut"));
}

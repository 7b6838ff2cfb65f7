//! Training: the same seed gives the same bytes, and a run that was cut short goes on as if it had not been.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use rscapret::backend::candle::Compute;
use rscapret_tests::{backend, command::rscapret, kills::survive};
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
    run(&config, &RunDir::open(&folder.join(name), &config, resume).unwrap(), &backend()).unwrap();
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

/// What is said where a run is not let into a folder.
fn refusal(folder: &Path, config: &Config, resume: bool) -> String {
    match RunDir::open(folder, config, resume) {
        Ok(_) => panic!("a run was let into {}", folder.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_run_is_never_overwritten_and_only_a_run_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    let config = config(folder, 1, 1);
    let none = folder.join("none");
    let error = refusal(&none, &config, true);
    assert!(
        error.ends_with("none: expected a run to continue but found none\nleave out --resume to begin one"),
        "{error}"
    );
    assert!(!none.exists());

    train(folder, "run", 1, 1, false);
    let error = refusal(&folder.join("run"), &config, false);
    assert!(error.contains("run: expected a new folder but found a run in it\npass --resume"), "{error}");
}

#[test]
fn a_run_goes_on_with_the_configuration_that_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    train(folder, "run", 4, 1, false);
    let run = folder.join("run");
    let saved = || fs::read_to_string(run.join("config.toml")).unwrap();
    let before = saved();
    let mut other = config(folder, 8, 1);
    (other.training.seed, other.model.hidden_size) = (8, 32);
    other.data[0].weight = 2.0;
    let error = refusal(&run, &other, true);
    assert!(
        error.contains(
            "config.toml: expected the configuration that the run was begun with but found other values of \
             `data[0].weight`, `model.hidden_size`, `training.seed`\n"
        ),
        "{error}"
    );
    assert_eq!(saved(), before);

    // Longer, patient, validated and saved at other times, and slower it may be: the record tells what it was before.
    let mut longer = config(folder, 6, 1);
    longer.training =
        TrainingConfig { patience: Some(9), validate_every: 3, checkpoint_seconds: 1.0, ..longer.training };
    longer.optim.lr = 5e-3;
    RunDir::open(&run, &longer, true).unwrap();
    let now = saved();
    assert_eq!(toml::from_str::<toml::Table>(&now).unwrap(), toml::Table::try_from(&longer).unwrap());
    let first = before.lines().next().unwrap();
    assert!(now.starts_with(&format!("{first}\n# resumed at commit ")), "{now}");
    assert!(now.contains("before optim.lr = 0.01, before training.checkpoint_seconds = 120.0,"), "{now}");
    RunDir::open(&run, &longer, true).unwrap();
    assert_eq!(saved(), now);
}

#[test]
fn a_run_that_never_began_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    let right = config(folder, 2, 1);
    let try_in = |config: &Config| run(config, &RunDir::open(&folder.join("run"), config, false).unwrap(), &backend());
    // A vocabulary of another size, which is found when the data were read.
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    try_in(&right).unwrap_err();
    assert!(folder.join("run/config.toml").exists() && folder.join("run/data.json").exists());
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    // Other data and another seed: nothing of the first try is left.
    let mut corrected = right.clone();
    corrected.training.seed = 9;
    corrected.data[0].name = "other".into();
    try_in(&corrected).unwrap();
    let saved: Config = toml::from_str(&fs::read_to_string(folder.join("run/config.toml")).unwrap()).unwrap();
    assert_eq!((saved.training.seed, saved.data[0].name.as_str()), (9, "other"));
    assert!(refusal(&folder.join("run"), &corrected, false).contains("found a run in it"));
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
        run(&config, &RunDir::open(&folder.join(name), &config, false).unwrap(), &backend()).unwrap();
        let lines = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line.get("validation").is_some()).map(|line| line["step"].as_u64().unwrap()).collect()
    };
    let all = steps("all", None);
    assert_eq!(all, (1..=10).map(|i| 4 * i).collect::<Vec<_>>());
    let patient = steps("patient", Some(2));
    assert!(patient.len() < all.len() && patient[..] == all[..patient.len()], "{patient:?}");
}

/// Ctrl-C in the middle: a checkpoint, exit code 1, and a run that goes on as if nothing had been.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_captions(&folder.join("captions.json"));
    fs::write(folder.join("lm.toml"), toml::to_string(&config(folder, 300, 1)).unwrap()).unwrap();
    let command = |name: &str, more: &[&str]| {
        let mut command = rscapret();
        command.current_dir(folder).args(["pretrain-lm", "lm.toml", "--run", name]).args(more);
        command.env("RAYON_NUM_THREADS", "1").stderr(Stdio::piped());
        command
    };
    assert!(command("whole", &[]).output().unwrap().status.success());

    let mut run = command("cut", &[]).spawn().unwrap();
    while fs::metadata(folder.join("cut/metrics.jsonl")).map_or(0, |data| data.len()) == 0 {
        assert!(run.try_wait().unwrap().is_none(), "it ended before its tenth step");
        sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.ends_with("error: expected to come to the end but found a request to stop\n"), "{error}");
    assert!(folder.join("cut/checkpoint.safetensors").exists() && !folder.join("cut/model").exists());
    // The steps after the interrupt are not lost: they were not done.
    let log = fs::read_to_string(folder.join("cut/metrics.jsonl")).unwrap();
    assert!(log.lines().count() < 30, "{log}");

    assert!(command("cut", &["--resume"]).output().unwrap().status.success());
    assert!(weights(folder, "whole") == weights(folder, "cut"), "an interrupt shows in the weights");
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
    survive(folder, &["pretrain-lm", "lm.toml"], 10);
    assert!(weights(folder, "whole") == weights(folder, "cut"), "ten kills show in the weights");
}

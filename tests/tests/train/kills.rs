//! The stages that learn from images, killed at random moments and gone on with, end as if nothing had been.

use std::fs;

use rscapret_tests::kills::survive;

use super::{models, toml};

/// Each in a few moments; `pretrain-lm` stands more of them in `trainer.rs`, and the loop around the steps is the same.
const KILLS: usize = 4;

/// After every step, so that many a kill meets the writing of one.
fn checkpoints(text: &str) -> String {
    text.replace("validate_every = 1000", "validate_every = 50, checkpoint_seconds = 0.0")
}

#[test]
fn kills_leave_no_trace_in_the_maps() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = checkpoints(&toml(150, "concatenate = 0.5"));
    fs::write(folder.join("train.toml"), text).unwrap();
    survive(folder, &["train", "train.toml"], KILLS);
    let read = |run: &str| fs::read(folder.join(run).join("projections.safetensors")).unwrap();
    assert!(read("whole") == read("cut"), "kills show in the maps");
}

#[test]
fn kills_leave_no_trace_in_a_clip() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, models) = (folder.path(), models().display());
    let text = format!(
        "micro_batch = 5\nclip = '{models}/clip/model'\nsame_string = 'masked'\n\
         training = {{ seed = 1, steps = 150, batch = 12, workers = 1, validate_every = 1000 }}\n\
         optim = {{ lr = 1e-3, beta1 = 0.9, beta2 = 0.98, weight_decay = 0.1, clip = 1.0 }}\n\
         schedule = {{ warmup = 5, decay = 1.0, shape = 'cosine' }}\naugment = {{ turns = true, area = 0.6, colour = 0.1 }}\n\
         [[data]]\ndataset = {{ name = 'own', annotations = '{models}/data.csv', images = '{models}/images' }}\n"
    );
    fs::write(folder.join("clip.toml"), checkpoints(&text)).unwrap();
    survive(folder, &["clip", "finetune", "clip.toml"], KILLS);
    let read = |run: &str| fs::read(folder.join(run).join("model/model.safetensors")).unwrap();
    assert!(read("whole") == read("cut"), "kills show in the towers");
    assert!(read("whole") != fs::read(super::models().join("clip/model/model.safetensors")).unwrap());
}

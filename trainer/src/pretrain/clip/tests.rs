//! The loss with captions beside it, every gradient and five steps of AdamW against PyTorch (tests/golden/make_training.py).

use std::path::PathBuf;

use rscapret::{Backend as _, Candle, clip::ClipConfig};
use serde_json::Value;

use super::{
    captioning::Decoder,
    model::SmallClip,
    step::{Batch, HostShare, train_step},
    *,
};
use crate::{
    captioning::Caption,
    cli::device::of_tests,
    golden::{self, assert_close, open, read, tensor},
    images::Augment,
    loss::SameString,
    optim::{OptimConfig, Schedule},
    run_dir::Prefixed,
    stage::TrainingConfig,
    vars::values,
};

/// The golden Llama.
fn decoder(backend: &Candle, weight: f64) -> Decoder {
    let (llama, tokenizer) = golden::llama(backend);
    let config = Captioning { llm: PathBuf::new(), weight, visual_tokens: 2, max_length: 64 };
    Decoder { backend: backend.clone(), llama, tokenizer, start: vec![1], config }
}

fn config(clip: &ClipConfig, optim: OptimConfig) -> Config {
    let training = serde_json::json!({ "seed": 1, "steps": 5, "batch": 4, "workers": 1, "validate_every": 5 });
    let training: TrainingConfig = serde_json::from_value(training).unwrap();
    Config {
        training,
        tokenizer: PathBuf::new(),
        vision_from: None,
        cache_size: 16,
        drop_until: 0.0,
        patch_keep: 1.0,
        depth_drop: 0.0,
        class_weight: 0.0,
        label_smoothing: 0.0,
        same_string: SameString::Masked,
        vision: clip.vision_config.clone(),
        text: clip.text_config.clone(),
        augment: Augment::default(),
        captioning: None,
        optim,
        schedule: Schedule::default(),
        data: Vec::new(),
    }
}

#[test]
fn losses_gradients_and_steps_with_captions_are_pytorchs() {
    let expected = open("training/captioned.safetensors");
    let json = |key: &str| -> Value { serde_json::from_str(expected.metadata(key).unwrap()).unwrap() };
    let (ids, words): (Vec<Vec<u32>>, Vec<Vec<u32>>) =
        (serde_json::from_value(json("ids")).unwrap(), serde_json::from_value(json("words")).unwrap());
    let assert_as = |what: &str, name: &str, found: &[f32]| {
        assert_close(name, found, &tensor(&expected, &format!("{what}.{name}")), 1e-4);
    };
    let (settings, history) = (json("settings"), json("history"));
    let backend = of_tests().unwrap();
    let clip = ClipConfig::from_json(&read("training/clip/config.json")).unwrap();
    let config = config(&clip, golden::adamw(&settings));
    let decoder = decoder(&backend, settings["weight"].as_f64().unwrap());
    let towers = open("training/clip/model.safetensors");
    let pixels = tensor(&expected, "pixels");
    let picture = pixels.len() / ids.len();
    for workers in [1, 2] {
        let new = NewVars::new(&backend, 0, 1);
        let model = SmallClip::new(&new, &clip, &[1], Some(decoder.inputs())).unwrap();
        // A class head has nothing to do here.
        let vars: Vars = new.into_vars().into_iter().filter(|(name, _)| !name.starts_with("class_head.")).collect();
        let (head, mut rest): (Vars, Vars) =
            vars.clone().into_iter().partition(|(name, _)| name.starts_with("caption_head."));
        // A scalar in checkpoints.
        let scale = rest.remove("logit_scale").unwrap();
        scale.set(&backend.upload(&tensor(&towers, "logit_scale"), &[1]).unwrap()).unwrap();
        restore(&rest, &towers).unwrap();
        restore(&head, &Prefixed { source: &expected, prefix: "before." }).unwrap();
        let mut optim = Optim::new(&config.optim, &vars).unwrap();
        let pool = Workers::new(workers, backend.device()).unwrap();
        for (step, losses) in history.as_array().unwrap().iter().enumerate() {
            let share = |at: usize| {
                let own = at..at + ids.len() / workers;
                let caption =
                    |i: usize| Caption { text: String::new(), tokens: words[i].clone(), whole: true, string: i };
                HostShare {
                    pixels: pixels[own.start * picture..own.end * picture].to_vec(),
                    kept: None,
                    skipped: vec![vec![1.0; own.len()]; 2 * clip.vision_config.num_hidden_layers],
                    ids: ids[own.clone()].to_vec(),
                    labels: vec![(0, None); own.len()],
                    captions: own.map(caption).collect(),
                }
            };
            let shares = (0..ids.len()).step_by(ids.len() / workers).map(share).collect();
            let batch = Batch { shares, equal: (0..ids.len()).collect() };
            let (gradients, line) = train_step(&config, &model, Some(&decoder), &vars, &pool, batch).unwrap();
            for key in ["loss", "contrast", "caption"] {
                let (found, expected) = (line[key].as_f64().unwrap(), losses[key].as_f64().unwrap());
                assert!((found - expected).abs() <= 1e-4 * expected, "{step}: {key} {found} but {expected}");
            }
            if step == 0 {
                assert_eq!(gradients.keys().collect::<Vec<_>>(), vars.keys().collect::<Vec<_>>());
                // Keys' biases have no gradient but what rounding leaves of it.
                for (name, gradient) in gradients.iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
                    assert_as("gradient", name, &values(gradient).unwrap());
                }
            }
            optim.step(&vars, &gradients, 1.0).unwrap();
        }
        for (name, var) in &vars {
            assert_as("after", name, &values(var).unwrap());
        }
    }
}

//! The step as the trainer takes it, in a process of its own.

use std::{path::PathBuf, time::Instant};

use candle_core::Tensor;
use pollster::block_on;
use rscapret::{
    Candle, Error, Result,
    backend::Backend as _,
    caption::Captioner,
    clip::{ClipVision, ClipVisionConfig, preprocess::PreprocessConfig},
    llama::Llama,
    projection::{Projections, ProjectionsConfig},
    tokenizer::{GgufVocab, Tokenizer},
};
use rscapret_trainer::{
    bridge::{CaptionedFrom, Config, LlmWeights, Models, Pair, train_step},
    captioning::Caption,
    cli::device::cuda,
    loss::SameString,
    optim::{Optim, OptimConfig, Schedule},
    stage::{TrainingConfig, Workers},
    vars::{NewVars, Vars},
};
use serde_json::json;

use super::shape::{Hashed, Shape, mixed, seed, values};
use crate::bench::{frozen::peak, threads};

/// Steps before those that are measured: kernels are compiled, memory is taken.
const WARM: usize = 2;

/// Measures in this process and prints what it found.
///
/// # Errors
/// Shapes that cannot be read; what the device answers.
pub fn child(shape: &str) -> Result<()> {
    let shape = Shape::new(Some(shape))?;
    let backend = if shape.is_cpu() { Candle::cpu() } else { cuda(0)? }.computing_in(shape.compute);
    let (config, pairs) = (config(&shape), pairs(&shape));
    let (models, vars) = models(&shape, &backend)?;
    let (mut optim, workers) = (Optim::new(&config.optim, &vars)?, Workers::new(1, backend.device())?);
    let train = [(1.0, pairs)];
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..WARM + shape.steps.max(1) {
        let begun = Instant::now();
        let (gradients, line) = train_step(&config, &train, &models, &vars, &workers, step as u64)?;
        optim.step(&vars, &gradients, 1.0)?;
        // The GPU has done everything once a value can be read that comes after.
        block_on(backend.read(vars["logit_scale"].as_tensor()))?;
        seconds.push(begun.elapsed().as_secs_f64());
        losses.push(line["loss"].as_f64().ok_or_else(|| Error::Backend("expected a loss but found none".into()))?);
    }
    let mut measured = seconds.split_off(WARM);
    measured.sort_by(f64::total_cmp);
    let about = format!("rscapret, {}", threads());
    println!(
        "{}",
        json!({ "seconds": measured[measured.len() / 2], "losses": losses, "peak": peak(), "about": about })
    );
    Ok(())
}

fn config(shape: &Shape) -> Config {
    Config {
        training: TrainingConfig {
            seed: 1,
            steps: 1000,
            batch: shape.batch,
            workers: 1,
            compute: shape.compute,
            validate_every: 1000,
            patience: None,
            checkpoint_seconds: 1e9,
        },
        llm: PathBuf::new(),
        llm_weights: LlmWeights::Stored,
        clip: PathBuf::new(),
        features: None,
        micro_batch: shape.micro_batch,
        image_feature: CaptionedFrom::Class,
        patch_grid: None,
        visual_tokens: shape.visual_tokens,
        joint_size: shape.joint_size,
        lambda_c: 1.0,
        lambda_r: 1.0,
        lambda_ret: 0.0,
        hidden_layer: None,
        rescale_ret: false,
        concatenate: 0.0,
        prompt: String::new(),
        same_string: SameString::Masked,
        feature_noise: 0.0,
        label_smoothing: 0.0,
        max_length: shape.tokens + 2,
        query_share: 0.0,
        optim: OptimConfig { lr: 1e-3, weight_decay: 0.0, clip: 1.0, ..OptimConfig::default() },
        schedule: Schedule::default(),
        data: Vec::new(),
    }
}

/// Features and captions of which each is its own.
fn pairs(shape: &Shape) -> Vec<Pair> {
    let (c, ids) = (shape.feature_size, seed("ids"));
    let features = values("features", shape.batch * c, 1.0);
    let token = |at: usize| 3 + mixed(at as u32 ^ ids) % (shape.vocab_size - 3) as u32;
    let pair = |i: usize| {
        let tokens = (i * shape.tokens..(i + 1) * shape.tokens).map(token).collect();
        let caption = Caption { text: String::new(), tokens, whole: true, string: i };
        Pair { image: PathBuf::new(), features: features[i * c..][..c].to_vec(), captions: vec![caption] }
    };
    (0..shape.batch).map(pair).collect()
}

/// The Llama with maps of hashed numbers; the tower is there for its width alone.
fn models(shape: &Shape, backend: &Candle) -> Result<(Models, Vars)> {
    let llama = block_on(Llama::load(&Hashed(backend), &shape.llama()))?;
    let tokenizer = Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>"].map(String::from).to_vec(),
        scores: Some(vec![0.0; 3]),
        token_types: Some(vec![2, 3, 3]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    })?;
    let tower = ClipVisionConfig {
        hidden_size: shape.feature_size,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        image_size: 8,
        patch_size: 8,
        ..ClipVisionConfig::default()
    };
    let vision = block_on(ClipVision::load(&Hashed(backend), &tower))?;
    let sizes = ProjectionsConfig {
        feature_size: shape.feature_size,
        hidden_size: shape.hidden_size,
        joint_size: shape.joint_size,
        visual_tokens: shape.visual_tokens,
        ret_output: false,
    };
    let new = NewVars::new(backend, 0, 1);
    let projections = block_on(Projections::load(&new, sizes))?;
    let vars = new.into_vars();
    for (name, var) in vars.iter().filter(|(name, _)| name.ends_with("weight") || *name == "ret_embedding") {
        let columns = var.dims().last().copied().unwrap_or(1) as f32;
        let values = values(name, var.elem_count(), 1.0 / columns.sqrt());
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
    }
    let preprocess = PreprocessConfig::clip(8);
    let captioner = Captioner::new(backend.clone(), llama, tokenizer, vision, preprocess, projections, "")?;
    Ok((Models::new(captioner, &vars)?, vars))
}

//! A small CLIP from pairs: InfoNCE over a whole batch, a class loss beside it and by choice one of captions, half of the
//! patches dropped at first.

mod captioning;
mod config;
mod data;
mod model;
mod step;
#[cfg(test)]
mod tests;
mod validation;

pub use config::{Captioning, ClassRule, Config, Source};

use std::path::Path;

use pollster::block_on;
use rscapret::{
    Candle, Context, Error, Result,
    clip::{ClipConfig, preprocess::PreprocessConfig},
    weights::gguf::{self, GgufFile, HfNames},
};
use serde_json::json;

use self::{
    captioning::Decoder,
    data::read_data,
    model::SmallClip,
    step::{make_batch, train_step},
    validation::validate,
};
use crate::{
    ahead::{cores, step_ahead},
    files::{FileSource, clip::ClipFiles, unreadable},
    optim::Optim,
    run_dir::RunDir,
    stage::{Loop, Workers, fills_shares, pool},
    vars::{NewVars, Vars, restore},
};

/// Trains to the end and writes a Hugging Face CLIP folder, `model/`, into the run's.
///
/// # Errors
/// Unusable data or configuration; see [`Loop::train`].
pub fn run(config: &Config, run: &RunDir, backend: &Candle) -> Result<()> {
    let clip = ClipConfig {
        vision_config: config.vision.clone(),
        text_config: config.text.clone(),
        projection_dim: config.vision.projection_dim,
    };
    config.check()?;
    let computing = backend.computing_in(config.training.compute);
    let decoder = config.captioning.as_ref().map(|captioning| Decoder::open(&computing, captioning)).transpose()?;
    let (data, eos) = read_data(config, run, decoder.as_ref())?;
    fills_shares(&data.train, config.data.iter().map(|source| source.dataset.name.as_str()), config.training.batch)?;
    let new = NewVars::new(&computing, config.training.seed, config.vision.num_hidden_layers);
    let model = SmallClip::new(&new, &clip, &data.classes, decoder.as_ref().map(Decoder::inputs))?;
    let vars = new.into_vars();
    if let Some(path) = &config.vision_from {
        begin_with(&vars, path).at(path.display())?;
    }
    let mut optim = Optim::new(&config.optim, &vars)?;
    let workers = Workers::new(config.training.workers, backend.device())?;
    let parameters: usize = vars.values().map(|v| v.elem_count()).sum();
    eprintln!("{parameters} parameters, {:?} classes, {} validation images", data.classes, data.val.len());
    let training = Loop { run, vars: &vars, config: &config.training, schedule: config.schedule, workers: &workers };
    let (places, making) = (workers.places(), pool(cores())?);
    step_ahead(
        config.training.steps,
        |step| make_batch(config, &data, places, &making, eos, step),
        |batch| {
            training.train(
                &mut optim,
                |step| train_step(config, &model, decoder.as_ref(), &vars, &workers, batch(step)),
                || validate(config, &data, &model, decoder.as_ref(), &workers, eos),
            )
        },
    )?;
    write_folder(config, &clip, &vars, run)
}

/// Sets the vision tower's variables to the weights of another, quantised or not.
fn begin_with(vars: &Vars, path: &Path) -> Result<()> {
    let tower = vars.iter().filter(|(name, _)| name.starts_with("vision_model."));
    let tower: Vars = tower.map(|(name, var)| (name.clone(), var.clone())).collect();
    if path.is_file() {
        let file = FileSource::open(path)?;
        if file.begins_with(&gguf::MAGIC)? {
            return restore(&tower, &HfNames::new(block_on(GgufFile::open(file))?)?);
        }
    }
    restore(&tower, &ClipFiles::open(path)?.weights)
}

fn write_folder(config: &Config, clip: &ClipConfig, vars: &Vars, run: &RunDir) -> Result<()> {
    let folder = |name: &str| format!("model/{name}");
    let mut tensors = crate::vars::to_raw(vars)?;
    tensors.retain(|name, _| !["class_head.", "caption_head."].iter().any(|head| name.starts_with(head)));
    // A matrix here, a convolution's kernel in the checkpoints of the field.
    if let Some(patches) = tensors.get_mut("vision_model.embeddings.patch_embedding.weight") {
        let side = config.vision.patch_size;
        patches.shape = vec![config.vision.hidden_size, 3, side, side];
    }
    if let Some(scale) = tensors.get_mut("logit_scale") {
        scale.shape = Vec::new();
    }
    let mut bytes = Vec::new();
    rscapret::weights::safetensors::write_safetensors(&tensors, &Default::default(), &mut bytes)?;
    run.write(&folder("model.safetensors"), &bytes)?;
    let mut json = serde_json::to_value(clip).map_err(|e| Error::Config(e.to_string()))?;
    json["model_type"] = "clip".into();
    json["architectures"] = json!(["CLIPModel"]);
    run.write(&folder("config.json"), json.to_string().as_bytes())?;
    let preprocess = serde_json::to_vec(&PreprocessConfig::clip(config.vision.image_size))
        .map_err(|e| Error::Config(e.to_string()))?;
    run.write(&folder("preprocessor_config.json"), &preprocess)?;
    let tokenizer = std::fs::read(&config.tokenizer).map_err(unreadable);
    run.write(&folder("tokenizer.json"), &tokenizer.at(config.tokenizer.display())?)
}

//! Vision towers from files: a GGUF, or the parts of a Hugging Face folder.

use serde_json::Value;

use super::{ClipVision, ClipVisionConfig, config::ClipConfig, preprocess::PreprocessConfig};
use crate::{
    backend::Backend,
    error::{Context, Error, Result},
    nn::Checkpoint,
    weights::{
        ByteSource, TensorSource,
        gguf::{GgufFile, HfNames},
    },
};

/// Loads a GGUF of the `clip` architecture. Projectors to other language models (`mm.*`), as llama.cpp's mmproj files have
/// them, are no part of the tower.
///
/// # Errors
/// A file that is no such GGUF; a missing, extra or misshapen tensor; whatever the source answers.
pub async fn load_vision<B: Backend>(
    backend: &B,
    source: impl ByteSource,
) -> Result<(ClipVision<B>, PreprocessConfig)> {
    let file = GgufFile::open(source).await?;
    let config = ClipVisionConfig::from_gguf(file.metadata())?;
    let preprocess = PreprocessConfig::from_gguf(file.metadata())?;
    let names = HfNames::new(file)?;
    let checkpoint = Checkpoint::new(backend, &names);
    let vision = ClipVision::load(&checkpoint, &config).await?;
    checkpoint.finish(|name| !name.starts_with("mm."))?;
    Ok((vision, preprocess))
}

/// Loads the tower of a Hugging Face CLIP folder: the bytes of `config.json` (of both towers, or of the vision tower
/// alone), its safetensors and the bytes of `preprocessor_config.json`.
///
/// # Errors
/// As [`load_vision`]; [`Error::Config`] if preprocessing gives other pictures than the tower takes.
pub async fn load_vision_checkpoint<B: Backend>(
    backend: &B,
    config_json: &[u8],
    weights: &impl TensorSource,
    preprocessor_json: &[u8],
) -> Result<(ClipVision<B>, PreprocessConfig)> {
    let config = vision_config(config_json)?;
    let text = std::str::from_utf8(preprocessor_json)
        .map_err(|e| Error::Malformed(format!("preprocessor_config.json: expected UTF-8 but found {e}")))?;
    let preprocess = PreprocessConfig::from_json(text).at("preprocessor_config.json")?;
    if preprocess.crop_size != config.image_size {
        return Err(Error::Config(format!(
            "expected `crop_size` to be the tower's image_size, {}, but found {}",
            config.image_size, preprocess.crop_size
        )));
    }
    let checkpoint = Checkpoint::new(backend, weights);
    let vision = ClipVision::load(&checkpoint, &config).await?;
    // Old checkpoints number the positions in a tensor.
    checkpoint.finish(|name| name.starts_with("vision_model.") && !name.ends_with(".position_ids"))?;
    Ok((vision, preprocess))
}

fn vision_config(json: &[u8]) -> Result<ClipVisionConfig> {
    let malformed = |e| Error::Malformed(format!("config.json: expected a CLIP configuration but found: {e}"));
    let value: Value = serde_json::from_slice(json).map_err(malformed)?;
    if value.get("vision_config").is_some() {
        return Ok(ClipConfig::from_json(json)?.vision_config);
    }
    if value["model_type"] != "clip_vision_model" {
        return Err(Error::Unsupported(format!(
            "config.json: expected model_type `clip` or `clip_vision_model` but found {}",
            value["model_type"]
        )));
    }
    let config: ClipVisionConfig = serde_json::from_value(value).map_err(malformed)?;
    config.check()?;
    Ok(config)
}

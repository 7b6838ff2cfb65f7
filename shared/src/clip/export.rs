//! Vision towers to GGUF files, with llama.cpp's names.

use super::{ClipVisionConfig, preprocess::PreprocessConfig};
use crate::{
    error::Result,
    weights::{
        Dtype, TensorSource,
        gguf::{Converter, GgufWriter, file_type},
    },
};

/// The vision tower of a checkpoint, its tensors by Hugging Face's names, as GGUF. Matrices become `dtype` (F32, F16, BF16,
/// Q8_0 or Q4_0), vectors and positions F32. Tensors outside of `vision_model.` are not looked at.
///
/// # Errors
/// A missing, extra or misshapen tensor; [`crate::Error::Config`] for preprocessing that the format cannot say;
/// [`crate::Error::Unsupported`] for other types.
pub async fn vision_gguf(
    name: &str,
    config: &ClipVisionConfig,
    preprocess: &PreprocessConfig,
    tensors: &impl TensorSource,
    dtype: Dtype,
) -> Result<GgufWriter> {
    config.check()?;
    let mut out = Converter::new(tensors, dtype);
    let file = out.writer();
    file.metadata("general.architecture", "clip")?.metadata("general.name", name)?;
    file.metadata("general.file_type", file_type(dtype)?)?;
    file.metadata("general.quantization_version", 2u32)?;
    for (key, value) in config.to_gguf(preprocess)?.iter() {
        file.metadata(key, value.clone())?;
    }

    for (name, shape) in config.tensors() {
        out.put(&name, &shape).await?;
    }
    out.finish(|name| name.starts_with("vision_model.") && !name.ends_with(".position_ids"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend, Candle, Error,
        backend::Activation,
        clip::{ClipVision, load_vision, load_vision_checkpoint},
        weights::{
            gguf::GgufFile,
            testing::{nmse, random_checkpoint},
        },
    };

    fn config() -> ClipVisionConfig {
        ClipVisionConfig {
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            image_size: 32,
            patch_size: 8,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            projection_dim: 16,
        }
    }

    fn json(config: &ClipVisionConfig) -> Vec<u8> {
        let mut json = serde_json::to_value(config).unwrap();
        json["model_type"] = "clip_vision_model".into();
        serde_json::to_vec(&json).unwrap()
    }

    async fn pooled(vision: &ClipVision<Candle>) -> Vec<f32> {
        let backend = Candle::cpu();
        let pixels: Vec<f32> = (0..2 * 3 * 32 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
        let pixels = backend.upload(&pixels, &[2, 3, 32, 32]).unwrap();
        backend.read(&vision.forward(&backend, &pixels).unwrap().pooled).await.unwrap()
    }

    #[test]
    fn a_gguf_computes_what_its_checkpoint_does() {
        pollster::block_on(async {
            let (backend, preprocess) = (Candle::cpu(), PreprocessConfig::clip(32));
            let mut names = config().tensors();
            names.push(("text_model.final_layer_norm.weight".into(), vec![8]));
            let source = random_checkpoint(2, &names).await;
            let settings = serde_json::to_vec(&preprocess).unwrap();
            let (tower, read) = load_vision_checkpoint(&backend, &json(&config()), &source, &settings).await.unwrap();
            assert_eq!((tower.config(), &read), (&config(), &preprocess));
            let expected = pooled(&tower).await;
            let mut before = 0.0;
            for (dtype, bound) in [(Dtype::F32, 1e-10), (Dtype::F16, 1e-5), (Dtype::Q8_0, 1e-3), (Dtype::Q4_0, 5e-2)] {
                let file = vision_gguf("tiny", &config(), &preprocess, &source, dtype).await.unwrap();
                let bytes = file.to_bytes().unwrap();
                let stored = GgufFile::open(bytes.clone()).await.unwrap();
                assert_eq!(stored.info("v.blk.0.attn_q.weight").unwrap().dtype, dtype);
                let (tower, read) = load_vision(&backend, bytes).await.unwrap();
                assert_eq!(read, preprocess);
                let error = nmse(&pooled(&tower).await, &expected);
                // Fewer bits, and only that, are seen in it.
                assert!(error < bound && error >= before, "{dtype}: {error}");
                before = error;
            }
        });
    }

    #[test]
    fn nothing_is_left_over_in_silence() {
        pollster::block_on(async {
            let (backend, preprocess) = (Candle::cpu(), PreprocessConfig::clip(32));
            let mut names = config().tensors();
            names.push(("vision_model.extra.weight".into(), vec![8]));
            let source = random_checkpoint(2, &names).await;
            let settings = serde_json::to_vec(&preprocess).unwrap();
            let error = load_vision_checkpoint(&backend, &json(&config()), &source, &settings).await.err().unwrap();
            assert!(matches!(error, Error::ExtraTensors(_)), "{error}");
            let error = vision_gguf("tiny", &config(), &preprocess, &source, Dtype::F32).await.unwrap_err();
            assert!(matches!(error, Error::ExtraTensors(_)), "{error}");
            let wrong = serde_json::to_vec(&PreprocessConfig::clip(64)).unwrap();
            let error = load_vision_checkpoint(&backend, &json(&config()), &source, &wrong).await.err().unwrap();
            assert!(matches!(error, Error::Config(_)), "{error}");
        });
    }
}

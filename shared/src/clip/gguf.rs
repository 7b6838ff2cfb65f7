//! The vision tower's configuration and its preprocessing as GGUF metadata (`clip.*`, as in llama.cpp's mmproj files).

use super::{config::ClipVisionConfig, preprocess::PreprocessConfig};
use crate::{
    backend::Activation,
    error::{Error, Result},
    weights::gguf::Metadata,
};

const IMAGE_SIZE: &str = "clip.vision.image_size";
const IMAGE_MEAN: &str = "clip.vision.image_mean";
const IMAGE_STD: &str = "clip.vision.image_std";
const EPSILON: &str = "clip.vision.attention.layer_norm_epsilon";
const USE_GELU: &str = "clip.use_gelu";

impl ClipVisionConfig {
    /// Reads the metadata of a GGUF of the `clip` architecture.
    ///
    /// # Errors
    /// [`Error::Malformed`] for keys that are missing or of another type, [`Error::Unsupported`] for files without a
    /// vision tower or with another activation.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let architecture: &str = metadata.get("general.architecture")?;
        if architecture != "clip" || !metadata.find::<bool>("clip.has_vision_encoder")?.unwrap_or(false) {
            return Err(Error::Unsupported(format!(
                "expected `general.architecture` to be `clip` with a vision encoder but found `{architecture}`"
            )));
        }
        if metadata.find::<bool>("clip.use_silu")? == Some(true) {
            return Err(Error::Unsupported("expected GELU or its quick form but found `clip.use_silu`".into()));
        }
        let size = |name: &str| metadata.get::<usize>(&format!("clip.vision.{name}"));
        let gelu = metadata.find::<bool>(USE_GELU)?.unwrap_or(false);
        let config = ClipVisionConfig {
            hidden_size: size("embedding_length")?,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: size("block_count")?,
            num_attention_heads: size("attention.head_count")?,
            image_size: metadata.get(IMAGE_SIZE)?,
            patch_size: size("patch_size")?,
            hidden_act: if gelu { Activation::Gelu } else { Activation::QuickGelu },
            layer_norm_eps: metadata.get(EPSILON)?,
            projection_dim: size("projection_dim")?,
        };
        config.check()?;
        Ok(config)
    }

    /// What [`ClipVisionConfig::from_gguf`] and [`PreprocessConfig::from_gguf`] read, in llama.cpp's keys.
    ///
    /// # Errors
    /// [`Error::Config`] for preprocessing that the keys cannot say: another crop than the whole shorter side, or another
    /// size than the tower's.
    pub fn to_gguf(&self, preprocess: &PreprocessConfig) -> Result<Metadata> {
        if [preprocess.size, preprocess.crop_size] != [self.image_size; 2] {
            return Err(Error::Config(format!(
                "expected preprocessing to {0}x{0} pixels, the tower's, but found size {1} and crop_size {2}",
                self.image_size, preprocess.size, preprocess.crop_size
            )));
        }
        let mut out = Metadata::new();
        out.insert("clip.has_vision_encoder", true)?;
        for (name, size) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("embedding_length", self.hidden_size),
            ("feed_forward_length", self.intermediate_size),
            ("block_count", self.num_hidden_layers),
            ("attention.head_count", self.num_attention_heads),
            ("projection_dim", self.projection_dim),
        ] {
            let size = u32::try_from(size)
                .map_err(|_| Error::Config(format!("expected {name} to fit 32 bits but found {size}")))?;
            out.insert(format!("clip.vision.{name}"), size)?;
        }
        out.insert(EPSILON, self.layer_norm_eps as f32)?;
        out.insert(IMAGE_MEAN, preprocess.image_mean.to_vec())?;
        out.insert(IMAGE_STD, preprocess.image_std.to_vec())?;
        out.insert(USE_GELU, self.hidden_act == Activation::Gelu)?;
        Ok(out)
    }
}

impl PreprocessConfig {
    /// Reads size, mean and deviation from the metadata of a vision tower's GGUF.
    ///
    /// # Errors
    /// [`Error::Malformed`] for keys that are missing or of another type, [`Error::Config`] for values out of range.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let channels = |key: &str| -> Result<[f32; 3]> {
            let values: &[f32] = metadata.get(key)?;
            values.try_into().map_err(|_| {
                Error::Malformed(format!("expected metadata `{key}` to have 3 values but found {}", values.len()))
            })
        };
        let size = metadata.get(IMAGE_SIZE)?;
        let config = PreprocessConfig {
            size,
            crop_size: size,
            image_mean: channels(IMAGE_MEAN)?,
            image_std: channels(IMAGE_STD)?,
        };
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClipVisionConfig {
        ClipVisionConfig {
            image_size: 64,
            hidden_act: Activation::Gelu,
            layer_norm_eps: f64::from(1e-5f32),
            ..ClipVisionConfig::default()
        }
    }

    fn read(preprocess: &PreprocessConfig) -> Result<(ClipVisionConfig, PreprocessConfig)> {
        let mut metadata = config().to_gguf(preprocess)?;
        metadata.insert("general.architecture", "clip")?;
        Ok((ClipVisionConfig::from_gguf(&metadata)?, PreprocessConfig::from_gguf(&metadata)?))
    }

    #[test]
    fn survives_its_own_metadata() {
        let preprocess = PreprocessConfig { image_mean: [0.1, 0.2, 0.3], ..PreprocessConfig::clip(64) };
        assert_eq!(read(&preprocess).unwrap(), (config(), preprocess));
    }

    #[test]
    fn what_the_keys_cannot_say_is_refused() {
        let crop = PreprocessConfig { size: 70, ..PreprocessConfig::clip(64) };
        assert!(matches!(read(&crop), Err(Error::Config(_))));
        assert!(matches!(read(&PreprocessConfig::clip(224)), Err(Error::Config(_))));
    }

    #[test]
    fn other_files_are_refused() {
        let mut metadata = config().to_gguf(&PreprocessConfig::clip(64)).unwrap();
        assert!(ClipVisionConfig::from_gguf(&metadata).is_err());
        metadata.insert("general.architecture", "llama").unwrap();
        assert!(matches!(ClipVisionConfig::from_gguf(&metadata), Err(Error::Unsupported(_))));
    }
}

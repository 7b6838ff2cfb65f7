//! The settings of `preprocessor_config.json`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// Mean of each channel over CLIP's training pictures, of values in 0..=1 (Radford et al., 2021). Stands here alone.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel, likewise.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Largest `size` and `crop_size`: the largest CLIP towers see 512.
const MAX_EDGE: usize = 2048;

/// How pictures become pixel values. Fields are Hugging Face's; fields that are absent are CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreprocessConfig {
    /// Length of the shorter side after resizing. Read from a number or from `{"shortest_edge": n}`.
    #[serde(deserialize_with = "shortest_edge")]
    pub size: usize,
    /// Side of the square that is kept. Read from a number or from `{"height": n, "width": n}`.
    #[serde(deserialize_with = "square")]
    pub crop_size: usize,
    /// Mean of each channel, of values in 0..=1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each channel.
    pub image_std: [f32; 3],
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self::clip(224)
    }
}

impl PreprocessConfig {
    /// CLIP's stock settings for a tower that sees `size` x `size` pixels.
    pub fn clip(size: usize) -> Self {
        Self { size, crop_size: size, image_mean: CLIP_MEAN, image_std: CLIP_STD }
    }

    /// Reads a `preprocessor_config.json`. Steps that this library does not do are refused, not ignored.
    ///
    /// # Errors
    /// [`Error::Config`] for values that cannot be used, [`Error::Unsupported`] for other processing than CLIP's.
    pub fn from_json(json: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(json)
            .map_err(|e| Error::Config(format!("expected a preprocessor configuration but found: {e}")))?;
        if !value.is_object() {
            return Err(Error::Config("preprocessor configuration: expected an object".into()));
        }
        for step in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            if value.get(step).and_then(serde_json::Value::as_bool) == Some(false) {
                return Err(Error::Unsupported(format!("expected `{step}` to be true but found false")));
            }
        }
        // Pillow's number of the bicubic filter.
        if let Some(filter) = value.get("resample").and_then(serde_json::Value::as_u64).filter(|&f| f != 3) {
            return Err(Error::Unsupported(format!("expected `resample` to be 3 (bicubic) but found {filter}")));
        }
        if let Some(factor) = value.get("rescale_factor").and_then(serde_json::Value::as_f64)
            && (factor * 255.0 - 1.0).abs() > 1e-6
        {
            return Err(Error::Unsupported(format!("expected `rescale_factor` to be 1/255 but found {factor}")));
        }
        let config: Self = serde_json::from_value(value)
            .map_err(|e| Error::Config(format!("expected a preprocessor configuration but found: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// [`Error::Config`] for sizes out of range and for means or deviations that no division survives.
    pub fn check(&self) -> Result<()> {
        for (name, edge) in [("size", self.size), ("crop_size", self.crop_size)] {
            if !(1..=MAX_EDGE).contains(&edge) {
                return Err(Error::Config(format!("expected `{name}` in 1..={MAX_EDGE} but found {edge}")));
            }
        }
        if !self.image_mean.iter().all(|m| m.is_finite()) {
            return Err(Error::Config(format!("expected finite `image_mean` but found {:?}", self.image_mean)));
        }
        if !self.image_std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(Error::Config(format!("expected positive `image_std` but found {:?}", self.image_std)));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Edge {
    Number(usize),
    Shortest { shortest_edge: usize },
    Sides { height: usize, width: usize },
}

fn shortest_edge<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match Edge::deserialize(from)? {
        Edge::Number(n) | Edge::Shortest { shortest_edge: n } => Ok(n),
        Edge::Sides { height, width } => Err(serde::de::Error::custom(format!(
            "expected `size` to be a shortest edge but found height {height} and width {width}"
        ))),
    }
}

fn square<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match Edge::deserialize(from)? {
        Edge::Number(n) => Ok(n),
        Edge::Sides { height, width } if height == width => Ok(height),
        _ => Err(serde::de::Error::custom("expected `crop_size` to be a number or a square of height and width")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_a_hugging_face_file() {
        let new = r#"{"crop_size": {"height": 336, "width": 336}, "do_center_crop": true, "do_normalize": true,
            "do_resize": true, "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336}}"#;
        assert_eq!(PreprocessConfig::from_json(new).unwrap(), PreprocessConfig::clip(336));
        let old = r#"{"crop_size": 64, "size": 70, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
        let read = PreprocessConfig::from_json(old).unwrap();
        assert_eq!((read.size, read.crop_size, read.image_mean), (70, 64, [0.5; 3]));
    }

    #[test]
    fn refuses_what_it_does_not_do() {
        for json in [
            r#"{"do_center_crop": false}"#,
            r#"{"resample": 2}"#,
            r#"{"rescale_factor": 1.0}"#,
            r#"{"size": {"height": 224, "width": 224}}"#,
            r#"{"crop_size": {"height": 224, "width": 200}}"#,
            r#"{"size": 0}"#,
            r#"{"size": 1000000}"#,
            r#"{"image_std": [0.2, 0.0, 0.2]}"#,
            "[]",
            "",
        ] {
            assert!(PreprocessConfig::from_json(json).is_err(), "{json}");
        }
    }

    #[test]
    fn survives_its_own_json() {
        let config = PreprocessConfig { size: 70, ..PreprocessConfig::clip(64) };
        assert_eq!(PreprocessConfig::from_json(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }
}

//! How captions are decoded.

use serde::{Deserialize, Serialize};

use super::sampling::{BeamSearch, Sampler};
use crate::error::{Error, Result};

/// Settings of decoding. The default is the paper's: greedy, up to 32 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Most tokens of a caption, its end not counted.
    pub max_tokens: usize,
    /// Beams of the search; 1 decodes token by token.
    pub beams: usize,
    /// Exponent of the length that a beam's score is divided by: above 0 favours longer captions.
    pub length_penalty: f32,
    /// Divisor of the logits, 0 to 10; 0 takes the likeliest token.
    pub temperature: f32,
    /// Probability of the likeliest tokens that are drawn from, above 0 and at most 1.
    pub top_p: f32,
    /// Of the drawing: the same seed gives the same caption.
    pub seed: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { max_tokens: 32, beams: 1, length_penalty: 1.0, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

impl DecodeOptions {
    /// # Errors
    /// [`Error::Config`] for values out of range, and for a search that is also to draw.
    pub fn check(&self) -> Result<()> {
        self.sampler()?;
        self.search(None, self.max_tokens)?;
        if self.beams > 1 && self.temperature != 0.0 {
            return Err(Error::Config(format!(
                "expected `temperature` to be 0 with {} beams but found {}\nbeam search does not draw: choose one of them",
                self.beams, self.temperature
            )));
        }
        Ok(())
    }

    pub(crate) fn sampler(&self) -> Result<Sampler> {
        Sampler::new(self.temperature, self.top_p, self.seed)
    }

    pub(super) fn search(&self, eos: Option<u32>, max_tokens: usize) -> Result<BeamSearch> {
        BeamSearch::new(self.beams, self.length_penalty, eos, max_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let ok = DecodeOptions::default();
        ok.check().unwrap();
        DecodeOptions { beams: 5, ..ok }.check().unwrap();
        for bad in [
            DecodeOptions { max_tokens: 0, ..ok },
            DecodeOptions { beams: 0, ..ok },
            DecodeOptions { beams: 1000, ..ok },
            DecodeOptions { length_penalty: f32::NAN, ..ok },
            DecodeOptions { temperature: -1.0, ..ok },
            DecodeOptions { top_p: 0.0, ..ok },
            DecodeOptions { beams: 2, temperature: 0.5, ..ok },
        ] {
            assert!(matches!(bad.check(), Err(Error::Config(_))), "{bad:?}");
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let read = |json: &str| serde_json::from_str::<DecodeOptions>(json);
        assert_eq!(read(r#"{"beams": 3}"#).unwrap(), DecodeOptions { beams: 3, ..DecodeOptions::default() });
        assert!(read(r#"{"beam": 3}"#).is_err());
    }
}

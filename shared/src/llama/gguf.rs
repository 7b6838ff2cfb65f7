//! A Llama's configuration as GGUF metadata (`llama.*`).

use super::config::{LlamaConfig, RopeScaling};
use crate::{
    backend::RopeLayout,
    error::{Error, Result},
    weights::gguf::{Metadata, MetadataArray, MetadataValue},
};

impl LlamaConfig {
    /// Reads the metadata of a GGUF of the `llama` architecture. `has_output`: whether the file has `output.weight`,
    /// without which the head is the embedding table. `rope_freqs`: the values of `rope_freqs.weight`, if it is there.
    ///
    /// # Errors
    /// [`Error::Malformed`] for keys that are missing or of another type, [`Error::Unsupported`] for other architectures
    /// and for variants (experts, partial rotation, YaRN) that are not here.
    pub fn from_gguf(metadata: &Metadata, has_output: bool, rope_freqs: Option<Vec<f32>>) -> Result<Self> {
        let architecture: &str = metadata.get("general.architecture")?;
        if architecture != "llama" {
            return Err(Error::Unsupported(format!(
                "expected `general.architecture` to be `llama` but found `{architecture}`"
            )));
        }
        let key = |name: &str| format!("llama.{name}");
        let size = |name: &str| metadata.get::<usize>(&key(name));
        if let Some(experts @ 1..) = metadata.find::<usize>(&key("expert_count"))? {
            return Err(Error::Unsupported(format!("expected a dense model but found {experts} experts")));
        }
        let (hidden_size, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim =
            metadata.find(&key("attention.key_length"))?.unwrap_or(hidden_size.checked_div(heads).unwrap_or_default());
        // The model rotates whole heads, and its values are as wide as its keys.
        for name in ["rope.dimension_count", "attention.value_length"] {
            if let Some(found) = metadata.find::<usize>(&key(name))?.filter(|&found| found != head_dim) {
                return Err(Error::Unsupported(format!(
                    "expected `llama.{name}` to be the width of a head, {head_dim}, but found {found}"
                )));
            }
        }
        let vocab_size = match metadata.find(&key("vocab_size"))? {
            Some(size) => size,
            None => metadata.get::<&MetadataArray>("tokenizer.ggml.tokens")?.len(),
        };
        let config = LlamaConfig {
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: size("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: metadata.find(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            vocab_size,
            max_position_embeddings: size("context_length")?,
            rms_norm_eps: metadata.get(&key("attention.layer_norm_rms_epsilon"))?,
            // llama.cpp's, where writers leave it out.
            rope_theta: metadata.find(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: scaling(metadata, rope_freqs)?,
            rope_layout: RopeLayout::Interleaved,
            tie_word_embeddings: !has_output,
        };
        config.check()?;
        Ok(config)
    }

    /// What [`LlamaConfig::from_gguf`] reads, in llama.cpp's keys. Llama 3's scaling is no metadata but the tensor of
    /// [`LlamaConfig::frequency_divisors`].
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that the format cannot hold.
    pub fn to_gguf(&self) -> Result<Metadata> {
        let mut out = Metadata::new();
        let mut put = |name: &str, value: MetadataValue| out.insert(format!("llama.{name}"), value);
        for (name, size) in [
            ("context_length", self.max_position_embeddings),
            ("embedding_length", self.hidden_size),
            ("block_count", self.num_hidden_layers),
            ("feed_forward_length", self.intermediate_size),
            ("attention.head_count", self.num_attention_heads),
            ("attention.head_count_kv", self.num_key_value_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab_size),
        ] {
            let size = u32::try_from(size)
                .map_err(|_| Error::Config(format!("expected {name} to fit 32 bits but found {size}")))?;
            put(name, size.into())?;
        }
        put("attention.layer_norm_rms_epsilon", (self.rms_norm_eps as f32).into())?;
        put("rope.freq_base", (self.rope_theta as f32).into())?;
        if let RopeScaling::Linear(factor) = self.rope_scaling {
            put("rope.scaling.type", "linear".into())?;
            put("rope.scaling.factor", (factor as f32).into())?;
        }
        Ok(out)
    }

    /// `rope_freqs.weight` (K / 2): what the plain frequencies are divided by, where that is not one number.
    pub fn frequency_divisors(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            RopeScaling::None | RopeScaling::Linear(_) => None,
            RopeScaling::Factors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = LlamaConfig { rope_scaling: RopeScaling::None, ..self.clone() }.inverse_frequencies();
                Some(plain.iter().zip(self.inverse_frequencies()).map(|(p, scaled)| (p / scaled) as f32).collect())
            }
        }
    }
}

/// The scaling that the file asks for: divisors by tensor, or one factor by metadata.
fn scaling(metadata: &Metadata, rope_freqs: Option<Vec<f32>>) -> Result<RopeScaling> {
    let kind = metadata.find::<&str>("llama.rope.scaling.type")?;
    let factor = match metadata.find::<f64>("llama.rope.scaling.factor")? {
        // Files of 2023 have the factor under this key, without a type.
        None => metadata.find::<f64>("llama.rope.scale_linear")?,
        factor => factor,
    };
    let linear = match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (None | Some("linear"), Some(factor)) if factor > 0.0 && factor.is_finite() => {
            Some(factor).filter(|&factor| factor != 1.0)
        }
        (None | Some("linear"), factor) => {
            return Err(Error::Malformed(format!("expected a positive rope scaling factor but found {factor:?}")));
        }
        (Some(other), _) => {
            return Err(Error::Unsupported(format!(
                "expected `llama.rope.scaling.type` to be `none` or `linear` but found `{other}`"
            )));
        }
    };
    match (linear, rope_freqs) {
        (None, None) => Ok(RopeScaling::None),
        (Some(factor), None) => Ok(RopeScaling::Linear(factor)),
        (None, Some(divisors)) => match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
            None => Ok(RopeScaling::Factors(divisors)),
            Some(d) => Err(Error::Malformed(format!("expected positive `rope_freqs.weight` but found {d}"))),
        },
        (Some(_), Some(_)) => {
            Err(Error::Unsupported("expected one rope scaling but found both a factor and `rope_freqs.weight`".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> LlamaConfig {
        LlamaConfig {
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 100,
            max_position_embeddings: 64,
            rms_norm_eps: f64::from(1e-5f32),
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_layout: RopeLayout::Interleaved,
            tie_word_embeddings: true,
        }
    }

    fn read(config: &LlamaConfig, extra: &[(&str, MetadataValue)]) -> Result<LlamaConfig> {
        let mut metadata = config.to_gguf()?;
        metadata.insert("general.architecture", "llama")?;
        for (key, value) in extra {
            metadata.insert(*key, value.clone())?;
        }
        LlamaConfig::from_gguf(&metadata, !config.tie_word_embeddings, config.frequency_divisors())
    }

    #[test]
    fn survives_its_own_metadata() {
        for scaling in [RopeScaling::None, RopeScaling::Linear(2.0), RopeScaling::Factors(vec![2.0; 8])] {
            let config = LlamaConfig { rope_scaling: scaling, ..plain() };
            assert_eq!(read(&config, &[]).unwrap(), config);
        }
    }

    #[test]
    fn llama3_scaling_becomes_divisors() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 512.0,
        };
        let config = LlamaConfig { rope_scaling: scaling, ..plain() };
        let read = read(&config, &[]).unwrap();
        for (a, b) in read.inverse_frequencies().iter().zip(config.inverse_frequencies()) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
        let divisors = config.frequency_divisors().unwrap();
        assert_eq!((divisors[0], divisors[7]), (1.0, 8.0));
    }

    #[test]
    fn variants_are_refused() {
        let unsupported: [(&str, MetadataValue); 2] =
            [("llama.rope.scaling.type", "yarn".into()), ("llama.expert_count", 8u32.into())];
        for extra in unsupported {
            assert!(matches!(read(&plain(), std::slice::from_ref(&extra)), Err(Error::Unsupported(_))), "{}", extra.0);
        }
        let bad = ("llama.rope.scaling.factor", (-1.0f32).into());
        assert!(matches!(read(&plain(), &[bad]), Err(Error::Malformed(_))));
        let mut other = Metadata::new();
        other.insert("general.architecture", "falcon").unwrap();
        assert!(LlamaConfig::from_gguf(&other, true, None).unwrap_err().to_string().contains("`falcon`"));
    }
}

//! Configuration of a Llama, in Hugging Face's names, from `config.json` or from GGUF metadata.

use serde::{Deserialize, Serialize};

use crate::{
    backend::RopeLayout,
    error::{Error, Result},
    nn::divides,
};

/// Shape of a Llama and of its rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Width D.
    pub hidden_size: usize,
    /// Width F of the MLPs.
    pub intermediate_size: usize,
    /// Layers L.
    pub num_hidden_layers: usize,
    /// Query heads H.
    pub num_attention_heads: usize,
    /// Key and value heads G.
    pub num_key_value_heads: usize,
    /// Width K of a head.
    pub head_dim: usize,
    /// Vocabulary V.
    pub vocab_size: usize,
    /// Longest context that it was trained for, tokens.
    pub max_position_embeddings: usize,
    /// Of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Pairs that the rotation turns.
    pub rope_layout: RopeLayout,
    /// Whether the head is the embedding table; a checkpoint without `lm_head.weight` must say so.
    pub tie_word_embeddings: bool,
}

/// How rotary frequencies are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by one factor (position interpolation).
    Linear(f64),
    /// Llama 3.1's: long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above context / this are long.
        low_freq_factor: f64,
        /// Wavelengths below context / this are short.
        high_freq_factor: f64,
        /// Context of the first training, tokens.
        original_max_position_embeddings: f64,
    },
    /// Divisors (K / 2) from a GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// `config.json`, as far as it concerns us.
#[derive(Deserialize, Serialize)]
struct HfConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    /// Since transformers 5 both stand here.
    rope_parameters: Option<HfRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct HfRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

// transformers' LlamaConfig.
fn default_context() -> usize {
    2048
}

fn default_eps() -> f64 {
    1e-6
}

impl LlamaConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bad JSON; [`Error::Unsupported`] for variants of the architecture that are not here.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let hf: HfConfig = serde_json::from_slice(bytes)
            .map_err(|e| Error::Malformed(format!("config.json: expected a Llama configuration but found: {e}")))?;
        if hf.attention_bias || hf.mlp_bias {
            return Err(Error::Unsupported(
                "config.json: expected layers without bias but found attention_bias or mlp_bias".into(),
            ));
        }
        if let Some(act) = hf.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(Error::Unsupported(format!("config.json: expected hidden_act `silu` but found `{act}`")));
        }
        let rope = hf.rope_parameters.as_ref().or(hf.rope_scaling.as_ref());
        let theta = hf.rope_theta.or(rope.and_then(|r| r.rope_theta)).unwrap_or(10_000.0);
        let config = LlamaConfig {
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            num_hidden_layers: hf.num_hidden_layers,
            num_attention_heads: hf.num_attention_heads,
            num_key_value_heads: hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
            head_dim: hf.head_dim.unwrap_or(hf.hidden_size / hf.num_attention_heads.max(1)),
            vocab_size: hf.vocab_size,
            max_position_embeddings: hf.max_position_embeddings,
            rms_norm_eps: hf.rms_norm_eps,
            rope_theta: theta,
            rope_scaling: rope.map_or(Ok(RopeScaling::None), HfRope::scaling)?,
            rope_layout: RopeLayout::Half,
            tie_word_embeddings: hf.tie_word_embeddings,
        };
        config.check()?;
        Ok(config)
    }

    /// The same as a Hugging Face `config.json`, for checkpoints that the trainer writes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`RopeScaling::Factors`], which that file has no place for.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        let scaling = match &self.rope_scaling {
            RopeScaling::None => serde_json::Value::Null,
            RopeScaling::Linear(factor) => serde_json::json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                serde_json::json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                })
            }
            RopeScaling::Factors(_) => {
                return Err(Error::Unsupported(
                    "config.json: expected a rope scaling by formula but found a GGUF's divisors".into(),
                ));
            }
        };
        Ok(serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tie_word_embeddings,
        }))
    }

    /// # Errors
    /// [`Error::Config`] for shapes that cannot be.
    pub fn check(&self) -> Result<()> {
        divides("query heads over key heads", self.num_attention_heads, self.num_key_value_heads)?;
        divides("head_dim", self.head_dim, 2)?;
        divides("hidden_size", self.hidden_size, 1)?;
        divides("vocab_size", self.vocab_size, 1)?;
        if let RopeScaling::Factors(f) = &self.rope_scaling
            && f.len() != self.head_dim / 2
        {
            return Err(Error::Shape {
                name: "rope_freqs.weight".into(),
                expected: vec![self.head_dim / 2],
                found: vec![f.len()],
            });
        }
        Ok(())
    }

    /// Every tensor of a checkpoint with its shape, by Hugging Face's names.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f, v) = (self.hidden_size, self.intermediate_size, self.vocab_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut out = vec![("model.embed_tokens.weight".to_string(), vec![v, d])];
        for layer in 0..self.num_hidden_layers {
            let parts: [(&str, &[usize]); 9] = [
                ("input_layernorm", &[d]),
                ("self_attn.q_proj", &[queries, d]),
                ("self_attn.k_proj", &[keys, d]),
                ("self_attn.v_proj", &[keys, d]),
                ("self_attn.o_proj", &[d, queries]),
                ("post_attention_layernorm", &[d]),
                ("mlp.gate_proj", &[f, d]),
                ("mlp.up_proj", &[f, d]),
                ("mlp.down_proj", &[d, f]),
            ];
            out.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape.to_vec())));
        }
        out.push(("model.norm.weight".to_string(), vec![d]));
        if !self.tie_word_embeddings {
            out.push(("lm_head.weight".to_string(), vec![v, d]));
        }
        out
    }

    /// Angles a position turns by, (K / 2), radians.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|i| {
                let plain = self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64);
                match &self.rope_scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear(factor) => plain / factor,
                    RopeScaling::Factors(factors) => plain / f64::from(factors.get(i).copied().unwrap_or(1.0)),
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_position_embeddings,
                    } => {
                        let wavelength = 2.0 * std::f64::consts::PI / plain;
                        let turns = original_max_position_embeddings / wavelength;
                        if turns < *low_freq_factor {
                            plain / factor
                        } else if turns > *high_freq_factor {
                            plain
                        } else {
                            let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - keep) * plain / factor + keep * plain
                        }
                    }
                }
            })
            .collect()
    }

    /// Cosines of every position's angles, then their sines: (2, positions, K / 2), row-major.
    pub fn rope_table(&self, positions: usize) -> Vec<f32> {
        let angles = self.inverse_frequencies();
        let all = || (0..positions).flat_map(|p| angles.iter().map(move |a| p as f64 * a));
        all().map(f64::cos).chain(all().map(f64::sin)).map(|v| v as f32).collect()
    }
}

impl HfRope {
    fn scaling(&self) -> Result<RopeScaling> {
        let need = |what: &str, value: Option<f64>| {
            value.ok_or_else(|| Error::Malformed(format!("rope_scaling: expected `{what}` but found none")))
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear(need("factor", self.factor)?)),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: need(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            Some(other) => Err(Error::Unsupported(format!(
                "rope_scaling: expected `default`, `linear` or `llama3` but found `{other}`"
            ))),
        }
    }
}

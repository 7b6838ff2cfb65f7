//! Configurations, in Hugging Face's names. A field that `config.json` leaves out has the value that
//! `transformers` gives it (CLIPConfig and its parts), for published files rely on that.

use serde::{Deserialize, Serialize};

use crate::{
    backend::Activation,
    error::{Error, Result},
    nn::divides,
};

/// Shape of a vision tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width D.
    pub hidden_size: usize,
    /// Width F of the MLPs.
    pub intermediate_size: usize,
    /// Layers L.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Side of the square input, pixels.
    pub image_size: usize,
    /// Side of a square patch, pixels.
    pub patch_size: usize,
    /// Of the MLPs.
    pub hidden_act: Activation,
    /// Of the layer norms.
    pub layer_norm_eps: f64,
    /// Joint space of CLIP itself.
    pub projection_dim: usize,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        ClipVisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
        }
    }
}

/// Shape of a text tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Width D.
    pub hidden_size: usize,
    /// Width F of the MLPs.
    pub intermediate_size: usize,
    /// Layers L.
    pub num_hidden_layers: usize,
    /// Heads H.
    pub num_attention_heads: usize,
    /// Longest text, tokens.
    pub max_position_embeddings: usize,
    /// Vocabulary V.
    pub vocab_size: usize,
    /// Of the MLPs.
    pub hidden_act: Activation,
    /// Of the layer norms.
    pub layer_norm_eps: f64,
    /// End of text, whose hidden state stands for the text. 2 is what old files say and means the largest id.
    pub eos_token_id: u32,
    /// Joint space of CLIP itself.
    pub projection_dim: usize,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        ClipTextConfig {
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            vocab_size: 49408,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: 512,
        }
    }
}

/// Both towers: `config.json` of a CLIP folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Vision tower.
    pub vision_config: ClipVisionConfig,
    /// Text tower.
    pub text_config: ClipTextConfig,
    /// Joint space; stands above the towers' own field.
    #[serde(default = "default_projection_dim")]
    pub projection_dim: usize,
}

fn default_projection_dim() -> usize {
    512
}

impl ClipConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bad JSON or types, [`Error::Config`] for shapes that cannot be.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let mut config: ClipConfig = serde_json::from_slice(bytes)
            .map_err(|e| Error::Malformed(format!("config.json: expected a CLIP configuration but found: {e}")))?;
        config.vision_config.projection_dim = config.projection_dim;
        config.text_config.projection_dim = config.projection_dim;
        config.vision_config.check()?;
        config.text_config.check()?;
        Ok(config)
    }
}

impl ClipVisionConfig {
    /// Patches P of an image.
    pub fn num_patches(&self) -> usize {
        let side = self.patches_per_side();
        side * side
    }

    /// Patches of a side of it.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Every tensor of a checkpoint's tower with its shape, by Hugging Face's names.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f, patch) = (self.hidden_size, self.intermediate_size, self.patch_size);
        let mut out: Vec<(String, Vec<usize>)> = Vec::new();
        let mut put = |name: String, shape: &[usize]| out.push((format!("vision_model.{name}"), shape.to_vec()));
        put("embeddings.class_embedding".into(), &[d]);
        put("embeddings.patch_embedding.weight".into(), &[d, 3, patch, patch]);
        put("embeddings.position_embedding.weight".into(), &[1 + self.num_patches(), d]);
        for norm in ["pre_layrnorm", "post_layernorm"] {
            put(format!("{norm}.weight"), &[d]);
            put(format!("{norm}.bias"), &[d]);
        }
        for layer in 0..self.num_hidden_layers {
            let parts: [(&str, &[usize]); 8] = [
                ("layer_norm1", &[d]),
                ("self_attn.q_proj", &[d, d]),
                ("self_attn.k_proj", &[d, d]),
                ("self_attn.v_proj", &[d, d]),
                ("self_attn.out_proj", &[d, d]),
                ("layer_norm2", &[d]),
                ("mlp.fc1", &[f, d]),
                ("mlp.fc2", &[d, f]),
            ];
            for (part, shape) in parts {
                put(format!("encoder.layers.{layer}.{part}.weight"), shape);
                put(format!("encoder.layers.{layer}.{part}.bias"), &shape[..1]);
            }
        }
        out
    }

    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        divides("vision heads", self.hidden_size, self.num_attention_heads)?;
        divides("vision patches", self.image_size, self.patch_size)
    }
}

impl ClipTextConfig {
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        divides("text heads", self.hidden_size, self.num_attention_heads)
    }
}

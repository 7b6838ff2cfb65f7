//! What a bundle's models take of a GPU, by the headers of their files alone.

use serde::{Deserialize, Serialize};

use crate::{
    backend::webgpu::weight_bytes,
    clip::{ClipVisionConfig, ImageFeature},
    error::{Context, Result},
    llama::LlamaConfig,
    projection::Conventions,
    weights::{ByteSource, TensorSource, gguf::GgufFile, safetensors::SafetensorsFile},
};

/// More tokens than a picture with its caption, or a query, has, where patches are not counted; a model may allow a thousand
/// times as many.
const LONGEST: usize = 512;

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Weights of both models, as they lie on the device.
    pub weights: u64,
    /// Keys and values of one caption or text, 512 tokens and those of a picture's patches, or as many as the model allows.
    pub cache: u64,
    /// Activations, at most: those of a picture in the tower, or of as long a text in the language model.
    pub scratch: u64,
}

impl Need {
    /// Of a language model and a vision tower, GGUF both, and the maps between them.
    ///
    /// # Errors
    /// Files that are no such models; what the sources answer.
    pub async fn of(llm: impl ByteSource, vision: impl ByteSource, projections: impl ByteSource) -> Result<Self> {
        let (llm, vision) = (GgufFile::open(llm).await?, GgufFile::open(vision).await?);
        let llama = LlamaConfig::from_gguf(llm.metadata(), llm.info("output.weight").is_some(), None)?;
        let tower = ClipVisionConfig::from_gguf(vision.metadata())?;
        let maps = SafetensorsFile::open(projections).await?;
        let patches = match Conventions::from_metadata(|key| maps.metadata(key))?.image_feature {
            ImageFeature::Class => 0,
            feature => {
                let rows = maps.info("caption.weight").and_then(|map| map.shape.first()).copied().unwrap_or_default();
                feature.captioned().saturating_mul(rows / llama.hidden_size.max(1))
            }
        };
        let context = llama.max_position_embeddings.min(LONGEST.saturating_add(patches));
        let keys = llama.num_key_value_heads * llama.head_dim;
        let cache = 4 * (2 * llama.num_hidden_layers * keys * context) as u64;
        // Rows that live at once: the residual stream and its norm, queries, keys, values, what attention gives, and the
        // inner half of the MLP with what it is made of.
        let row = |d: usize, kv: usize, f: usize| (4 * d + 2 * kv + 3 * f) as u64;
        let text = row(llama.hidden_size, keys, llama.intermediate_size) * context as u64 + llama.vocab_size as u64;
        let (d, f) = (tower.hidden_size, tower.intermediate_size);
        let picture =
            row(d, d, f) * (1 + tower.num_patches()) as u64 + (3 * tower.image_size * tower.image_size) as u64;
        Ok(Need {
            weights: weight_bytes(llm.tensors()) + weight_bytes(vision.tensors()),
            cache,
            scratch: 4 * text.max(picture),
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }

    /// A model that was loaded on a GPU; what refuses it is told beside what it needs.
    ///
    /// # Errors
    /// That of `loaded`.
    pub fn told_with<T>(&self, loaded: Result<T>) -> Result<T> {
        loaded.at(format!("a model that needs {:.0} MB of the GPU's memory", self.total() as f64 / 1e6))
    }
}

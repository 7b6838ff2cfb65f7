//! The one table between the names of Hugging Face checkpoints and those of GGUF files.

use std::{collections::HashMap, ops::Range};

use crate::{
    error::{Error, Result},
    weights::{RawTensor, TensorInfo, TensorSource},
};

/// (checkpoint's name, GGUF's name); `{}` is the layer's number. `.weight` and `.bias` are left out and carry over.
///
/// The first part is llama.cpp's llama architecture, the second its CLIP vision tower. In the latter `ffn_up` is `fc1`
/// and `ffn_down` is `fc2`; files made before May 2025 have them the other way round, which [`HfNames`] finds out by
/// shape and undoes, as llama.cpp does (<https://github.com/ggml-org/llama.cpp/pull/13290>).
const NAMES: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
    ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
    // Llama 3's rope scaling as divisors of the frequencies. Checkpoints have it in config.json, so it keeps its name.
    ("rope_freqs", "rope_freqs"),
    // ---
    ("vision_model.embeddings.class_embedding", "v.class_embd"),
    ("vision_model.embeddings.patch_embedding", "v.patch_embd"),
    ("vision_model.embeddings.position_embedding", "v.position_embd"),
    ("vision_model.pre_layrnorm", "v.pre_ln"), // the checkpoint's own spelling
    ("vision_model.post_layernorm", "v.post_ln"),
    ("vision_model.encoder.layers.{}.layer_norm1", "v.blk.{}.ln1"),
    ("vision_model.encoder.layers.{}.self_attn.q_proj", "v.blk.{}.attn_q"),
    ("vision_model.encoder.layers.{}.self_attn.k_proj", "v.blk.{}.attn_k"),
    ("vision_model.encoder.layers.{}.self_attn.v_proj", "v.blk.{}.attn_v"),
    ("vision_model.encoder.layers.{}.self_attn.out_proj", "v.blk.{}.attn_out"),
    ("vision_model.encoder.layers.{}.layer_norm2", "v.blk.{}.ln2"),
    ("vision_model.encoder.layers.{}.mlp.fc1", "v.blk.{}.ffn_up"),
    ("vision_model.encoder.layers.{}.mlp.fc2", "v.blk.{}.ffn_down"),
];

/// GGUF's name for a checkpoint's tensor, if the table has it: `model.layers.3.mlp.up_proj.weight` ->
/// `blk.3.ffn_up.weight`.
pub fn gguf_name(hf: &str) -> Option<String> {
    translate(hf, |&(hf, gguf)| (hf, gguf))
}

/// The checkpoint's name for a GGUF's tensor, if the table has it.
pub fn hf_name(gguf: &str) -> Option<String> {
    translate(gguf, |&(hf, gguf)| (gguf, hf))
}

fn translate(
    name: &str,
    direction: impl Fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) -> Option<String> {
    let (stem, suffix) = [".weight", ".bias"]
        .iter()
        .find_map(|&suffix| Some((name.strip_suffix(suffix)?, suffix)))
        .unwrap_or((name, ""));
    NAMES.iter().map(direction).find_map(|(from, to)| {
        let to = match from.split_once("{}") {
            None => (stem == from).then(|| to.to_string())?,
            Some((head, tail)) => {
                let layer = stem.strip_prefix(head)?.strip_suffix(tail)?;
                let canonical = layer.parse::<u32>().is_ok_and(|n| n.to_string() == layer);
                canonical.then(|| to.replacen("{}", layer, 1))?
            }
        };
        Some(to + suffix)
    })
}

/// Presents a GGUF under the checkpoint's names; what the table lacks keeps its own.
///
/// Rows of q and k stay in the file's order: llama.cpp's converter interleaves the halves of each head, which the model
/// takes into account by its rope layout.
#[derive(Debug)]
pub struct HfNames<S> {
    inner: S,
    infos: Vec<TensorInfo>,
    /// Checkpoint's name -> place in the inner source.
    index: HashMap<String, usize>,
}

impl<S: TensorSource> HfNames<S> {
    /// Translates the names of all tensors.
    ///
    /// # Errors
    /// [`Error::Malformed`] if two tensors get one name.
    pub fn new(inner: S) -> Result<Self> {
        let swapped = feed_forward_swapped(&inner);
        let mut infos = Vec::new();
        let mut index = HashMap::new();
        for (i, info) in inner.tensors().iter().enumerate() {
            let mut name = hf_name(&info.name).unwrap_or_else(|| info.name.clone());
            if swapped {
                name = swap_feed_forward(name);
            }
            if index.insert(name.clone(), i).is_some() {
                return Err(Error::Malformed(format!("expected one tensor for `{name}` but found two")));
            }
            infos.push(TensorInfo { name, ..info.clone() });
        }
        Ok(HfNames { inner, infos, index })
    }

    /// The source under its own names.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

/// Whether `ffn_down` is the layer that widens: its input is then D, the width of the layer norm.
fn feed_forward_swapped(source: &impl TensorSource) -> bool {
    let inner = |name: &str| source.info(name).and_then(|t| t.shape.last().copied());
    let (hidden, down, up) =
        (inner("v.blk.0.ln1.weight"), inner("v.blk.0.ffn_down.weight"), inner("v.blk.0.ffn_up.weight"));
    hidden.is_some() && down == hidden && up != hidden
}

fn swap_feed_forward(name: String) -> String {
    match (name.contains(".mlp.fc1"), name.contains(".mlp.fc2")) {
        (true, _) => name.replace(".mlp.fc1", ".mlp.fc2"),
        (_, true) => name.replace(".mlp.fc2", ".mlp.fc1"),
        _ => name,
    }
}

impl<S: TensorSource> TensorSource for HfNames<S> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        let &i = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        self.inner.fetch(&self.inner.tensors()[i].name).await
    }

    async fn fetch_rows(&self, name: &str, rows: Range<usize>) -> Result<RawTensor> {
        let &i = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        self.inner.fetch_rows(&self.inner.tensors()[i].name, rows).await
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.infos[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_one_to_one() {
        for (hf, gguf) in NAMES {
            for suffix in ["", ".weight", ".bias"] {
                let (hf, gguf) = (hf.replace("{}", "31") + suffix, gguf.replace("{}", "31") + suffix);
                assert_eq!(gguf_name(&hf).as_deref(), Some(gguf.as_str()));
                assert_eq!(hf_name(&gguf).as_deref(), Some(hf.as_str()));
            }
        }
    }

    #[test]
    fn only_whole_names_match() {
        for name in [
            "blk.x.attn_q.weight",
            "blk..attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.1.attn_q.scale",
            "xtoken_embd.weight",
        ] {
            assert_eq!(hf_name(name), None, "{name}");
        }
    }
}

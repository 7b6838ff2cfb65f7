//! OpenCLIP's checkpoints (<https://github.com/mlfoundations/open_clip>) under Hugging Face's names and in its shapes:
//! renamed, cut (`in_proj` is q, k and v in one) and transposed (`proj`) when they are fetched.

use std::collections::HashMap;

use crate::{
    error::{Context, Error, Result},
    weights::{RawTensor, TensorInfo, TensorSource},
};

/// Tensors that say nothing: masks that are computed, OpenAI's sizes as scalars.
const IGNORED: [&str; 4] = ["attn_mask", "input_resolution", "context_length", "vocab_size"];

/// A checkpoint of OpenCLIP as one of Hugging Face.
#[derive(Debug)]
pub struct OpenClip<S> {
    source: S,
    infos: Vec<TensorInfo>,
    origins: Vec<Origin>,
    index: HashMap<String, usize>,
}

/// Where a tensor comes from.
#[derive(Debug)]
struct Origin {
    name: String,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// One of three equal parts along the outermost dimension.
    Third(usize),
    /// Rows and columns of a matrix change places.
    Transposed,
}

impl<S: TensorSource> OpenClip<S> {
    /// Whether these are OpenCLIP's names: of a vision transformer with or without a text tower, perhaps as
    /// `DistributedDataParallel` writes them (`module.`).
    pub fn is(source: &S) -> bool {
        source.tensors().iter().any(|info| stem(&info.name) == "visual.conv1.weight")
    }

    /// # Errors
    /// [`Error::Unsupported`] for tensors that CLIP's plain towers do not have; [`Error::Malformed`] for a tensor that
    /// stands twice; [`Error::Shape`] where a tensor cannot be cut or transposed.
    pub fn new(source: S) -> Result<Self> {
        let mut all: Vec<(TensorInfo, Origin)> = Vec::new();
        let mut unknown = Vec::new();
        for info in source.tensors() {
            let name = stem(&info.name);
            if IGNORED.contains(&name) {
                continue;
            }
            match targets(name) {
                Some(targets) => {
                    for (target, part) in targets {
                        let shape = part.shape(info)?;
                        let origin = Origin { name: info.name.clone(), part };
                        all.push((TensorInfo { name: target, shape, dtype: info.dtype }, origin));
                    }
                }
                None => unknown.push(format!("`{}`", info.name)),
            }
        }
        if !unknown.is_empty() {
            return Err(Error::Unsupported(format!(
                "expected the tensors of OpenCLIP's plain vision and text transformers but also found {}{}\n\
                 other towers (ResNet, timm, Hugging Face text models) and layer scales are not supported",
                unknown[..unknown.len().min(5)].join(", "),
                if unknown.len() > 5 { format!(" and {} more", unknown.len() - 5) } else { String::new() }
            )));
        }
        let (infos, origins): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let mut index = HashMap::new();
        for (at, info) in infos.iter().enumerate() {
            if index.insert(info.name.clone(), at).is_some() {
                return Err(Error::Malformed(format!("expected one tensor for `{}` but found two", info.name)));
            }
        }
        Ok(OpenClip { source, infos, origins, index })
    }
}

/// A name without what wraps a model: `module.` of parallel training, `text.` of OpenCLIP's newer text towers.
fn stem(name: &str) -> &str {
    let name = name.strip_prefix("module.").unwrap_or(name);
    name.strip_prefix("text.").unwrap_or(name)
}

/// Hugging Face's tensors that one of OpenCLIP holds; `None` for a name that is not in the plain towers.
fn targets(name: &str) -> Option<Vec<(String, Part)>> {
    let one = |target: &str, part| Some(vec![(target.to_string(), part)]);
    match name {
        "logit_scale" => return one("logit_scale", Part::Whole),
        "visual.proj" => return one("visual_projection.weight", Part::Transposed),
        "text_projection" => return one("text_projection.weight", Part::Transposed),
        // A Linear, whose weight is stored as it is used.
        "text_projection.weight" => return one("text_projection.weight", Part::Whole),
        "token_embedding.weight" => return one("text_model.embeddings.token_embedding.weight", Part::Whole),
        "positional_embedding" => return one("text_model.embeddings.position_embedding.weight", Part::Whole),
        "visual.positional_embedding" => return one("vision_model.embeddings.position_embedding.weight", Part::Whole),
        "visual.class_embedding" => return one("vision_model.embeddings.class_embedding", Part::Whole),
        "visual.conv1.weight" => return one("vision_model.embeddings.patch_embedding.weight", Part::Whole),
        _ => {}
    }
    let (tower, rest) = match name.strip_prefix("visual.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", name),
    };
    let (stem, kind) = rest.rsplit_once(['.', '_']).filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let norm = match (tower, stem) {
        // The checkpoint's own spelling.
        ("vision_model", "ln_pre") => Some("pre_layrnorm"),
        ("vision_model", "ln_post") => Some("post_layernorm"),
        ("text_model", "ln_final") => Some("final_layer_norm"),
        _ => None,
    };
    if let Some(norm) = norm {
        return one(&format!("{tower}.{norm}.{kind}"), Part::Whole);
    }
    let (layer, part) = stem.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    // `01` would be another name for a layer that is there already.
    layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let target = |part: &str| format!("{tower}.encoder.layers.{layer}.{part}.{kind}");
    let part = match part {
        "ln_1" => "layer_norm1",
        "ln_2" => "layer_norm2",
        "mlp.c_fc" => "mlp.fc1",
        "mlp.c_proj" => "mlp.fc2",
        "attn.out_proj" => "self_attn.out_proj",
        "attn.in_proj" => {
            let parts = ["q_proj", "k_proj", "v_proj"].into_iter().enumerate();
            return Some(parts.map(|(i, part)| (target(&format!("self_attn.{part}")), Part::Third(i))).collect());
        }
        _ => return None,
    };
    one(&target(part), Part::Whole)
}

impl Part {
    fn shape(self, info: &TensorInfo) -> Result<Vec<usize>> {
        let shape = &info.shape;
        let wrong = |expected| Err(Error::Shape { name: info.name.clone(), expected, found: shape.clone() });
        match self {
            Part::Whole => Ok(shape.clone()),
            Part::Third(_) => match shape.split_first() {
                Some((rows, rest)) if rows % 3 == 0 => Ok([&[rows / 3], rest].concat()),
                _ => wrong(vec![3]),
            },
            Part::Transposed => match shape[..] {
                [rows, columns] => Ok(vec![columns, rows]),
                _ => wrong(vec![0, 0]),
            },
        }
    }

    fn cut(self, raw: RawTensor) -> Result<RawTensor> {
        let RawTensor { shape, dtype, bytes } = raw;
        let (size, block) = (dtype.block_bytes(), dtype.block_size());
        match self {
            Part::Whole => Ok(RawTensor { shape, dtype, bytes }),
            _ if block != 1 => Err(Error::Unsupported(format!("expected F32, F16 or BF16 but found {dtype}"))),
            Part::Third(i) => {
                let third = bytes.len() / 3;
                let bytes = bytes[i * third..(i + 1) * third].to_vec();
                let shape = shape.iter().enumerate().map(|(at, &d)| if at == 0 { d / 3 } else { d }).collect();
                Ok(RawTensor { shape, dtype, bytes })
            }
            Part::Transposed => {
                let [rows, columns] = shape[..] else {
                    return Err(Error::Unsupported(format!("expected a matrix but found shape {shape:?}")));
                };
                let mut turned = Vec::with_capacity(bytes.len());
                for column in 0..columns {
                    for row in 0..rows {
                        let at = (row * columns + column) * size;
                        turned.extend_from_slice(&bytes[at..at + size]);
                    }
                }
                Ok(RawTensor { shape: vec![columns, rows], dtype, bytes: turned })
            }
        }
    }
}

impl<S: TensorSource> TensorSource for OpenClip<S> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    async fn fetch(&self, name: &str) -> Result<RawTensor> {
        let &at = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_string()))?;
        let Origin { name, part } = &self.origins[at];
        let raw = self.source.fetch(name).await?;
        if Some(raw.bytes.len() as u64) != raw.dtype.bytes_of(&raw.shape) {
            return Err(Error::Malformed(format!(
                "expected the bytes of {:?} but found {}",
                raw.shape,
                raw.bytes.len()
            )))
            .at(name);
        }
        part.cut(raw).at(name)
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.infos[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::testing::random_checkpoint;

    #[test]
    fn names_find_their_places_and_others_are_refused() {
        let of = |name: &str| targets(stem(name)).map(|t| t.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
        assert_eq!(
            of("module.visual.transformer.resblocks.11.attn.in_proj_bias").unwrap(),
            ["q", "k", "v"].map(|p| format!("vision_model.encoder.layers.11.self_attn.{p}_proj.bias"))
        );
        assert_eq!(
            of("text.transformer.resblocks.0.mlp.c_proj.weight").unwrap(),
            ["text_model.encoder.layers.0.mlp.fc2.weight"]
        );
        assert_eq!(of("ln_final.bias").unwrap(), ["text_model.final_layer_norm.bias"]);
        for name in [
            "visual.transformer.resblocks.01.ln_1.weight",
            "visual.transformer.resblocks.0.ls_1.gamma",
            "visual.transformer.resblocks.-1.ln_1.weight",
            "visual.ln_final.weight",
            "visual.layer1.0.conv1.weight",
            "visual.conv1.bias",
            "logit_bias",
            "visual.",
            "",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn shapes_that_cannot_be_cut_are_errors() {
        let open = |name: &str, shape: &[usize]| {
            let source = pollster::block_on(random_checkpoint(1, &[(name.to_string(), shape.to_vec())]));
            OpenClip::new(source).err()
        };
        let in_proj = "visual.transformer.resblocks.0.attn.in_proj_weight";
        assert!(matches!(open(in_proj, &[8, 4]), Some(Error::Shape { .. })));
        assert!(matches!(open("visual.proj", &[8]), Some(Error::Shape { .. })));
        assert!(open(in_proj, &[9, 3]).is_none());
        let error = open("visual.attn_pool.query", &[2, 2]).unwrap().to_string();
        assert!(error.contains("also found `visual.attn_pool.query`"), "{error}");
    }
}

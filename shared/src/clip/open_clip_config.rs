//! What an OpenCLIP checkpoint is: by its tensors' shapes, and by `open_clip_config.json` what shapes cannot tell.

use serde_json::{Map, Value, json};

use super::{
    ClipConfig, ClipTextConfig, ClipVisionConfig,
    preprocess::{CLIP_MEAN, CLIP_STD, PreprocessConfig},
};
use crate::{
    backend::Activation,
    error::{Context, Error, Result},
    weights::TensorSource,
};

/// Name of OpenCLIP's configuration.
pub const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
/// Width of a head where nothing else is said, as OpenCLIP builds towers from weights alone.
const HEAD_WIDTH: usize = 64;

/// Keys of `vision_cfg` and `text_cfg` that shapes tell, too, or that only training reads.
const KNOWN: [&str; 22] = [
    "layers",
    "width",
    "head_width",
    "heads",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
    "patch_dropout",
    "output_tokens",
    "pad_id",
    "eos_id",
    "hf_tokenizer_name",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_pool",
    "timm_proj",
    "timm_model_pretrained",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
];

/// A checkpoint of OpenCLIP, whose tensors have Hugging Face's names already ([`super::OpenClip`]), as the JSON of a
/// Hugging Face folder: (`config.json`, `preprocessor_config.json`). Without `open_clip_config.json` (`json`), heads are 64
/// wide and the activation is GELU, which is OpenCLIP's rule for models that do not say `quick_gelu`.
///
/// # Errors
/// [`Error::MissingTensor`] and [`Error::Shape`] for tensors that are no CLIP's, [`Error::Unsupported`] for towers and
/// preprocessing of other kinds, [`Error::Malformed`] for bad JSON.
pub fn open_clip_folder(tensors: &impl TensorSource, json: Option<&[u8]>) -> Result<(Vec<u8>, Vec<u8>)> {
    let file: Value = match json {
        Some(json) => serde_json::from_slice(json)
            .map_err(|e| Error::Malformed(format!("expected a configuration of OpenCLIP but found: {e}")))
            .at(OPEN_CLIP_CONFIG)?,
        None => json!({}),
    };
    // Model configurations of OpenCLIP itself are the inner object alone.
    let model = file.get("model_cfg").unwrap_or(&file);
    let config = config(tensors, model).at(OPEN_CLIP_CONFIG)?;
    let preprocess = preprocess(file.get("preprocess_cfg"), config.vision_config.image_size).at(OPEN_CLIP_CONFIG)?;
    let mut json = serde_json::to_value(&config).map_err(|e| Error::Config(e.to_string()))?;
    json["model_type"] = "clip".into();
    json["architectures"] = json!(["CLIPModel"]);
    Ok((json.to_string().into_bytes(), preprocess.to_string().into_bytes()))
}

fn config(tensors: &impl TensorSource, model: &Value) -> Result<ClipConfig> {
    let (vision, text) = (section(model, "vision_cfg")?, section(model, "text_cfg")?);
    for key in ["multimodal_cfg", "audio_cfg"] {
        plain(&format!("`{key}`"), model.get(key), &Value::Null)?;
    }
    let shape = |name: &str, dims: usize| match tensors.info(name) {
        None => Err(Error::MissingTensor(name.to_string())),
        Some(info) if info.shape.len() != dims || info.shape.contains(&0) => {
            Err(Error::Shape { name: name.to_string(), expected: vec![1; dims], found: info.shape.clone() })
        }
        Some(info) => Ok(info.shape.clone()),
    };
    let layers = |tower: &str| {
        let is = |layer: &usize| tensors.info(&format!("{tower}.encoder.layers.{layer}.layer_norm1.weight")).is_some();
        (0..).take_while(is).count()
    };
    let hidden_act = match model.get("quick_gelu").and_then(Value::as_bool) {
        Some(true) => Activation::QuickGelu,
        _ => Activation::Gelu,
    };

    let patch = shape("vision_model.embeddings.patch_embedding.weight", 4)?;
    let positions = shape("vision_model.embeddings.position_embedding.weight", 2)?[0];
    // As many patches as positions, less the class token's.
    let side = positions.saturating_sub(1).isqrt();
    let image_size = side.checked_mul(patch[2]).filter(|_| side * side + 1 == positions).ok_or_else(|| {
        Error::Config(format!("expected positions of a square of patches and a class token but found {positions}"))
    })?;
    let projection_dim = shape("visual_projection.weight", 2)?[0];
    let head_width = number(vision, "head_width")?.unwrap_or(HEAD_WIDTH);
    let vision_config = ClipVisionConfig {
        hidden_size: patch[0],
        intermediate_size: shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)?[0],
        num_hidden_layers: layers("vision_model"),
        num_attention_heads: patch[0] / head_width.max(1),
        image_size,
        patch_size: patch[2],
        hidden_act,
        projection_dim,
        ..ClipVisionConfig::default()
    };
    let tokens = shape("text_model.embeddings.token_embedding.weight", 2)?;
    let heads = match (text.is_empty(), number(text, "heads")?) {
        (true, _) => tokens[1] / HEAD_WIDTH,
        // OpenCLIP's own default, of its text towers of width 512.
        (false, heads) => heads.unwrap_or(8),
    };
    let text_config = ClipTextConfig {
        hidden_size: tokens[1],
        intermediate_size: shape("text_model.encoder.layers.0.mlp.fc1.weight", 2)?[0],
        num_hidden_layers: layers("text_model"),
        num_attention_heads: heads,
        max_position_embeddings: shape("text_model.embeddings.position_embedding.weight", 2)?[0],
        vocab_size: tokens[0],
        hidden_act,
        // OpenCLIP takes the hidden state at the largest id, and so do old configurations that say 2.
        eos_token_id: 2,
        projection_dim,
        ..ClipTextConfig::default()
    };
    // What the file says beside is to be the same.
    for (section, key, found) in [
        (vision, "layers", vision_config.num_hidden_layers),
        (vision, "width", vision_config.hidden_size),
        (vision, "patch_size", vision_config.patch_size),
        (vision, "image_size", vision_config.image_size),
        (text, "layers", text_config.num_hidden_layers),
        (text, "width", text_config.hidden_size),
        (text, "context_length", text_config.max_position_embeddings),
        (text, "vocab_size", text_config.vocab_size),
    ] {
        if let Some(expected) = number(section, key)?.filter(|&expected| expected != found) {
            return Err(Error::Config(format!(
                "expected `{key}` to be that of the weights, {found}, but found {expected}\n\
                 configuration and weights are of different models"
            )));
        }
    }
    vision_config.check()?;
    text_config.check()?;
    Ok(ClipConfig { vision_config, text_config, projection_dim })
}

/// A part of the model's configuration, in which nothing may be said that these towers do not do.
fn section<'a>(model: &'a Value, key: &str) -> Result<&'a Map<String, Value>> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    let Some(section) = model.get(key) else { return Ok(&EMPTY) };
    let section = section.as_object().ok_or_else(|| Error::Malformed(format!("expected `{key}` to be an object")))?;
    for (name, value) in section.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
        let usual = match (key, name.as_str()) {
            (_, "pos_embed_type") => json!("learnable"),
            ("vision_cfg", "pool_type") => json!("tok"),
            ("text_cfg", "pool_type") => json!("argmax"),
            (_, "proj_type") => json!("linear"),
            (
                _,
                "attentional_pool"
                | "no_ln_pre"
                | "final_ln_after_pool"
                | "embed_cls"
                | "no_causal_mask"
                | "proj_bias"
                | "qk_norm"
                | "scaled_cosine_attn"
                | "scale_heads"
                | "scale_attn_inner"
                | "scale_attn"
                | "scale_fc",
            ) => json!(false),
            _ => Value::Null,
        };
        plain(&format!("`{name}` of `{key}`"), Some(value), &usual)?;
    }
    Ok(section)
}

fn plain(what: &str, value: Option<&Value>, usual: &Value) -> Result<()> {
    match value {
        Some(value) if value != usual && !value.is_null() => Err(Error::Unsupported(format!(
            "expected {what} to be {usual} but found {value}\nonly CLIP's plain vision and text transformers are supported"
        ))),
        _ => Ok(()),
    }
}

fn number(section: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    let Some(value) = section.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.map(Some).ok_or_else(|| Error::Unsupported(format!("expected `{key}` to be a number but found {value}")))
}

/// `preprocessor_config.json` of `preprocess_cfg`.
fn preprocess(config: Option<&Value>, size: usize) -> Result<Value> {
    let get = |key: &str| config.and_then(|config| config.get(key)).filter(|value| !value.is_null());
    for (key, usual) in [("interpolation", "bicubic"), ("resize_mode", "shortest"), ("mode", "RGB")] {
        plain(&format!("`{key}` of `preprocess_cfg`"), get(key), &json!(usual))?;
    }
    let config = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true, "size": { "shortest_edge": size }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": size, "width": size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_convert_rgb": true, "do_normalize": true,
        "image_mean": get("mean").cloned().unwrap_or_else(|| json!(CLIP_MEAN)),
        "image_std": get("std").cloned().unwrap_or_else(|| json!(CLIP_STD)),
    });
    // Whether it can be used shows before anything is loaded.
    PreprocessConfig::from_json(&config.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clip::OpenClip, weights::testing::random_checkpoint};

    fn shapes() -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("visual.conv1.weight".into(), vec![128, 3, 4, 4]),
            ("visual.positional_embedding".into(), vec![10, 128]),
            ("visual.proj".into(), vec![128, 24]),
            ("token_embedding.weight".into(), vec![50, 64]),
            ("positional_embedding".into(), vec![7, 64]),
        ];
        for layer in 0..2 {
            shapes.push((format!("visual.transformer.resblocks.{layer}.ln_1.weight"), vec![128]));
            shapes.push((format!("visual.transformer.resblocks.{layer}.mlp.c_fc.weight"), vec![96, 128]));
        }
        shapes.push(("transformer.resblocks.0.ln_1.weight".into(), vec![64]));
        shapes.push(("transformer.resblocks.0.mlp.c_fc.weight".into(), vec![80, 64]));
        shapes
    }

    fn open(json: Option<Value>, shapes: &[(String, Vec<usize>)]) -> Result<(ClipConfig, PreprocessConfig)> {
        let source = OpenClip::new(pollster::block_on(random_checkpoint(3, shapes))).unwrap();
        let json = json.map(|json| json.to_string().into_bytes());
        let (config, preprocess) = open_clip_folder(&source, json.as_deref())?;
        let preprocess = PreprocessConfig::from_json(std::str::from_utf8(&preprocess).unwrap()).unwrap();
        Ok((ClipConfig::from_json(&config).unwrap(), preprocess))
    }

    #[test]
    fn shapes_tell_all_but_heads_and_activation() {
        let (config, preprocess) = open(None, &shapes()).unwrap();
        let (vision, text) = (&config.vision_config, &config.text_config);
        assert_eq!((vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers), (128, 96, 2));
        assert_eq!((vision.num_attention_heads, vision.image_size, vision.patch_size), (2, 12, 4));
        assert_eq!((text.hidden_size, text.intermediate_size, text.num_hidden_layers), (64, 80, 1));
        assert_eq!((text.num_attention_heads, text.max_position_embeddings, text.vocab_size), (1, 7, 50));
        assert_eq!((vision.hidden_act, config.projection_dim), (Activation::Gelu, 24));
        assert_eq!(preprocess, PreprocessConfig::clip(12));
        let said = json!({"model_cfg": {"quick_gelu": true, "embed_dim": 24,
            "vision_cfg": {"head_width": 32, "image_size": 12, "layers": 2, "timm_model_name": null},
            "text_cfg": {"heads": 4, "width": 64, "pool_type": "argmax"}},
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}});
        let (config, preprocess) = open(Some(said), &shapes()).unwrap();
        assert_eq!((config.vision_config.num_attention_heads, config.text_config.num_attention_heads), (4, 4));
        assert_eq!((config.text_config.hidden_act, preprocess.image_mean), (Activation::QuickGelu, [0.5; 3]));
    }

    #[test]
    fn what_these_towers_do_not_do_is_refused() {
        for (json, words) in [
            (json!({"vision_cfg": {"timm_model_name": "vit"}}), "`timm_model_name` of `vision_cfg` to be null"),
            (json!({"vision_cfg": {"image_size": 16}}), "weights, 12, but found 16"),
            (json!({"vision_cfg": {"layers": [3, 4]}}), "`layers` to be a number"),
            (json!({"text_cfg": {"pool_type": "eos"}}), "`pool_type` of `text_cfg`"),
            (json!({"text_cfg": {"heads": 5}}), "text heads"),
            (json!({"text_cfg": {"something": 1}}), "`something` of `text_cfg`"),
            (json!({"model_cfg": {"multimodal_cfg": {}}}), "`multimodal_cfg`"),
            (json!({"model_cfg": {}, "preprocess_cfg": {"interpolation": "bilinear"}}), "`interpolation`"),
            (json!({"vision_cfg": 3}), "to be an object"),
        ] {
            let error = open(Some(json.clone()), &shapes()).unwrap_err().to_string();
            assert!(error.starts_with("open_clip_config.json: ") && error.contains(words), "{json}: {error}");
        }
        let mut odd = shapes();
        odd[1].1[0] = 11;
        assert!(open(None, &odd).unwrap_err().to_string().contains("but found 11"));
        odd.remove(1);
        assert!(matches!(open(None, &odd).unwrap_err().root(), Error::MissingTensor(_)));
    }
}

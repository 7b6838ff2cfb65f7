//! CLIP whole: both towers with the maps into its own joint space, of Hugging Face or OpenCLIP. The bridge does not need
//! the text tower; zero-shot retrieval, which the bridge is compared with, does.

use std::path::Path;

use candle_core::Tensor;
use pollster::block_on;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    clip::{
        ClipConfig, ClipText, ClipVision,
        preprocess::{Picture, PreprocessConfig, preprocess},
    },
    nn::{Checkpoint, Linear, Weights},
    tokenizer::{ClipTokenizer, Tokenizer},
};

use crate::files::{clip::ClipFiles, hugging_face::read_json, read_whole};

/// Most bytes of `merges.txt`; CLIP's has half a million.
const MAX_MERGES: u64 = 64 << 20;
/// OpenAI's file of merges, unpacked; from it alone the vocabulary follows.
pub const OPENAI_MERGES: &str = "bpe_simple_vocab_16e6.txt";

/// Both towers and their maps.
pub struct ClipModel {
    backend: Candle,
    vision: ClipVision<Candle>,
    text: ClipText<Candle>,
    visual_projection: Linear<Candle>,
    text_projection: Linear<Candle>,
    logit_scale: Tensor,
}

impl ClipModel {
    /// All tensors of a CLIP checkpoint.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(w: &impl Weights<Candle>, config: &ClipConfig) -> Result<Self> {
        block_on(async {
            let (j, vision, text) = (config.projection_dim, &config.vision_config, &config.text_config);
            Ok(ClipModel {
                backend: w.backend().clone(),
                vision: ClipVision::load(w, vision).await?,
                text: ClipText::load(w, text).await?,
                visual_projection: Linear::load_unbiased(w, "visual_projection", j, vision.hidden_size).await?,
                text_projection: Linear::load_unbiased(w, "text_projection", j, text.hidden_size).await?,
                logit_scale: logit_scale(w).await?,
            })
        })
    }

    /// Unit vectors (B, J) of normalised pixels (B, 3, side, side).
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn image_embedding(&self, pixels: &Tensor) -> Result<Tensor> {
        let pooled = self.vision.forward(&self.backend, pixels)?.pooled;
        self.backend.l2_normalize(&self.visual_projection.forward(&self.backend, &pooled)?)
    }

    /// Unit vectors (B, J) of sequences of one length, each with its end of text.
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    pub fn text_embedding(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let features = self.text.forward(&self.backend, ids)?;
        self.backend.l2_normalize(&self.text_projection.forward(&self.backend, &features)?)
    }

    /// ln of the factor of similarities, (1) or a scalar as the checkpoint has it.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

/// Transformers writes a scalar; this trainer's own small towers have a vector of one.
async fn logit_scale(w: &impl Weights<Candle>) -> Result<Tensor> {
    match w.tensor("logit_scale", &[]).await {
        Err(Error::Shape { .. }) => w.tensor("logit_scale", &[1]).await,
        other => other,
    }
}

/// Text to what the text tower reads.
pub enum ClipTokens {
    /// CLIP's own: [begin, text, end].
    Clip(Box<ClipTokenizer>),
    /// A vocabulary of one's own: [text, end].
    Own(Tokenizer),
}

impl ClipTokens {
    /// `tokenizer.json`, or `vocab.json` and `merges.txt` of old folders, or OpenAI's `bpe_simple_vocab_16e6.txt`.
    ///
    /// # Errors
    /// With the path: neither there, or of another kind.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.join("tokenizer.json").exists() {
            let json = read_json(folder, "tokenizer.json")?;
            let read = match ClipTokenizer::from_json(&json) {
                Ok(clip) => Ok(ClipTokens::Clip(Box::new(clip))),
                // It has not CLIP's names for begin and end, or is broken, which its own reader tells.
                Err(_) => Tokenizer::from_json(&json).map(ClipTokens::Own),
            };
            return read.at(folder.join("tokenizer.json").display());
        }
        let text = |name: &str| {
            let path = folder.join(name);
            String::from_utf8(read_whole(&path, MAX_MERGES)?)
                .map_err(|e| Error::Malformed(format!("expected UTF-8 but found {e}")))
                .at(path.display())
        };
        if folder.join(OPENAI_MERGES).exists() {
            let tokens = ClipTokenizer::from_merges(&text(OPENAI_MERGES)?).at(folder.join(OPENAI_MERGES).display())?;
            return Ok(ClipTokens::Clip(Box::new(tokens)));
        }
        if !folder.join("vocab.json").exists() {
            return Err(Error::Io(format!(
                "expected tokenizer.json, vocab.json or {OPENAI_MERGES} but found none of them\n\
                 put CLIP's there: tokenizer.json of openai/clip-vit-large-patch14 fits OpenCLIP's models, too"
            )))
            .at(folder.display());
        }
        let tokens = ClipTokenizer::from_vocab_merges(&text("vocab.json")?, &text("merges.txt")?);
        Ok(ClipTokens::Clip(Box::new(tokens.at(folder.display())?)))
    }

    /// At most `most` ids, the end of text among them: of a longer text the beginning is kept.
    ///
    /// # Errors
    /// [`Error::Config`] without an end of text; what the tokenizer answers.
    pub fn ids(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let (mut ids, text, end) = match self {
            ClipTokens::Clip(clip) => (vec![clip.start()], clip.encode(text)?, Some(clip.end())),
            ClipTokens::Own(own) => (Vec::new(), own.encode(text, false)?, own.eos()),
        };
        let end = end.ok_or_else(|| Error::Config("tokenizer: expected an end of text but found none".to_string()))?;
        ids.extend(text);
        ids.truncate(most.saturating_sub(1));
        ids.push(end);
        Ok(ids)
    }
}

/// Pads sequences to the longest by their last id, end of text: what stands after the first one is not looked at.
pub fn pad(mut sequences: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or_default();
    for sequence in &mut sequences {
        let end = sequence.last().copied().unwrap_or_default();
        sequence.resize(longest, end);
    }
    sequences
}

/// A frozen CLIP that embeds pictures and texts.
pub struct Clip {
    backend: Candle,
    config: ClipConfig,
    model: ClipModel,
    preprocess: PreprocessConfig,
    tokens: ClipTokens,
}

impl Clip {
    /// Opens a CLIP ([`ClipFiles::open`]) and the tokenizer beside it.
    ///
    /// # Errors
    /// With the path: a missing file, or one that is no such model's; a tensor too few or too many.
    pub fn open(backend: &Candle, path: &Path) -> Result<Self> {
        let files = ClipFiles::open(path)?;
        let config = ClipConfig::from_json(&files.config_json).at(path.display())?;
        let preprocess = read_preprocess(&files.preprocessor_json, &config).at(path.display())?;
        let checkpoint = Checkpoint::new(backend, &files.weights);
        let model = ClipModel::load(&checkpoint, &config).at(path.display())?;
        // Old checkpoints number the positions in a tensor.
        checkpoint.finish(|name| !name.ends_with(".position_ids")).at(path.display())?;
        Ok(Clip { backend: backend.clone(), config, model, preprocess, tokens: ClipTokens::open(&files.folder)? })
    }

    /// Width J of its joint space.
    pub fn joint_size(&self) -> usize {
        self.config.projection_dim
    }

    /// Unit vectors (B, J) of pictures.
    ///
    /// # Errors
    /// As [`preprocess`].
    pub fn images(&self, pictures: &[Picture]) -> Result<Tensor> {
        let side = self.preprocess.crop_size;
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * side * side);
        for picture in pictures {
            pixels.extend(preprocess(picture, &self.preprocess)?);
        }
        self.model.image_embedding(&self.backend.upload(&pixels, &[pictures.len(), 3, side, side])?)
    }

    /// Unit vectors (B, J) of texts.
    ///
    /// # Errors
    /// As [`ClipTokens::ids`].
    pub fn texts(&self, texts: &[&str]) -> Result<Tensor> {
        let most = self.config.text_config.max_position_embeddings;
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| self.tokens.ids(text, most)).collect::<Result<_>>()?;
        self.model.text_embedding(&pad(ids))
    }
}

/// `preprocessor_config.json`, which must give the pictures that the tower takes.
///
/// # Errors
/// Settings that cannot be used, or of another size.
pub fn read_preprocess(json: &[u8], config: &ClipConfig) -> Result<PreprocessConfig> {
    let preprocess = PreprocessConfig::from_json(&String::from_utf8_lossy(json))?;
    let (expected, found) = (config.vision_config.image_size, preprocess.crop_size);
    if expected != found {
        return Err(Error::Config(format!(
            "preprocessor_config.json: expected `crop_size` to be the tower's image_size, {expected}, but found {found}"
        )));
    }
    Ok(preprocess)
}

//! The models of a bundle, put together.

use std::sync::Arc;

use super::{CaptionStream, DecodeOptions, sequence};
use crate::{
    backend::Backend,
    bundle::{Bundle, FileEntry},
    clip::{
        ClipVision, load_vision,
        preprocess::{Picture, PreprocessConfig, preprocess},
    },
    error::{Context, Error, Result},
    llama::{Llama, load_llama},
    projection::{LLM_SHA256, Projections, VISION_SHA256},
    tokenizer::Tokenizer,
    weights::ByteSource,
};

/// Captions pictures and embeds pictures and texts: a bundle on a device.
pub struct Captioner<B: Backend> {
    backend: B,
    llama: Llama<B>,
    tokenizer: Arc<Tokenizer>,
    vision: ClipVision<B>,
    preprocess: PreprocessConfig,
    projections: Projections<B>,
    bundle_id: String,
    start: Vec<u32>,
    banned: Vec<u32>,
    /// The same as [`Backend::argmax`] takes it: (V), 0 for what captions may hold.
    mask: B::Tensor,
}

impl<B: Backend> Captioner<B> {
    /// Opens the three files of a bundle; `bundle_id` is that of [`crate::bundle::bundle_id`]. Whoever fetched the files has
    /// compared their digests with the manifest ([`crate::bundle::Verifier`]); here their lengths are, and that the
    /// projections were trained for the other two.
    ///
    /// # Errors
    /// A file of another length; projections of other models; what the files' readers refuse, with the file's name.
    pub async fn load(
        backend: B,
        manifest: &Bundle,
        bundle_id: &str,
        llm: impl ByteSource,
        vision: impl ByteSource,
        projections: impl ByteSource,
    ) -> Result<Self> {
        let files = &manifest.files;
        same_length(&files.llm, &llm)?;
        same_length(&files.vision, &vision)?;
        same_length(&files.projections, &projections)?;
        let (llama, tokenizer) = load_llama(&backend, llm).await.at(&files.llm.path)?;
        let (vision, preprocess) = load_vision(&backend, vision).await.at(&files.vision.path)?;
        let (feature_size, hidden_size) = (vision.config().hidden_size, llama.config().hidden_size);
        let trained_for = [(LLM_SHA256, files.llm.sha256.as_str()), (VISION_SHA256, files.vision.sha256.as_str())];
        let projections = Projections::open(&backend, projections, feature_size, hidden_size, &trained_for)
            .await
            .at(&files.projections.path)?;
        Self::new(backend, llama, tokenizer, vision, preprocess, projections, bundle_id)
    }

    /// Of models at hand.
    ///
    /// # Errors
    /// [`Error::Config`] if they do not fit each other.
    pub fn new(
        backend: B,
        llama: Llama<B>,
        tokenizer: Tokenizer,
        vision: ClipVision<B>,
        preprocess: PreprocessConfig,
        projections: Projections<B>,
        bundle_id: impl Into<String>,
    ) -> Result<Self> {
        Self::put_together(backend, llama, Arc::new(tokenizer), (vision, preprocess), projections, bundle_id.into())
    }

    /// The same models with other maps.
    ///
    /// # Errors
    /// As [`Captioner::new`].
    pub fn with_projections(&self, projections: Projections<B>) -> Result<Self> {
        let tower = (self.vision.clone(), self.preprocess.clone());
        let (backend, llama, tokenizer) = (self.backend.clone(), self.llama.clone(), self.tokenizer.clone());
        Self::put_together(backend, llama, tokenizer, tower, projections, self.bundle_id.clone())
    }

    fn put_together(
        backend: B,
        llama: Llama<B>,
        tokenizer: Arc<Tokenizer>,
        (vision, preprocess): (ClipVision<B>, PreprocessConfig),
        projections: Projections<B>,
        bundle_id: String,
    ) -> Result<Self> {
        let sizes = projections.config();
        let vocabulary = llama.config().vocab_size;
        fits("image features of the projections", vision.config().hidden_size, sizes.feature_size)?;
        projections.conventions().image_feature.check(vision.config())?;
        fits("width of the projections' language model", llama.config().hidden_size, sizes.hidden_size)?;
        fits("pixels of a preprocessed side", vision.config().image_size, preprocess.crop_size)?;
        let (context, seen) = (llama.config().max_position_embeddings, projections.tokens_of_image());
        if seen > context {
            return Err(Error::Config(format!(
                "expected a language model with a context of at least {seen} tokens, those of a picture, but found {context}\n\
                 train with a smaller `patch_grid` or fewer `visual_tokens`, or with another language model"
            )));
        }
        if tokenizer.vocab_size() > vocabulary {
            return Err(Error::Config(format!(
                "expected a tokenizer of at most {vocabulary} ids but found {}",
                tokenizer.vocab_size()
            )));
        }
        let (layers, wanted) = (llama.config().num_hidden_layers, projections.conventions().hidden_layer);
        if let Some(layer) = wanted.filter(|layer| !(1..=layers).contains(layer)) {
            return Err(Error::Config(format!(
                "expected `hidden_layer` from 1 to {layers}, the language model's layers, but found {layer}"
            )));
        }
        let start = sequence::caption_start(&tokenizer, &projections.conventions().prompt).at("prompt")?;
        // Captions are text: no begin, no control token, no row that pads the embedding table.
        let text_or_end = |id: u32| {
            let text =
                (id as usize) < tokenizer.vocab_size() && !tokenizer.is_control(id) && Some(id) != tokenizer.bos();
            text || Some(id) == tokenizer.eos()
        };
        let banned: Vec<u32> = (0..vocabulary as u32).filter(|&id| !text_or_end(id)).collect();
        let mut mask = vec![0.0; vocabulary];
        banned.iter().for_each(|&id| mask[id as usize] = 1.0);
        let mask = backend.upload(&mask, &[vocabulary])?;
        Ok(Captioner { backend, llama, tokenizer, vision, preprocess, projections, bundle_id, start, banned, mask })
    }

    /// Image features of B pictures, as the projections take them: (B, C), or (B, (1 + g g) C) with those of patches.
    ///
    /// # Errors
    /// [`Error::Config`] for no pictures; [`Error::Image`] for one whose buffer does not fit its sides.
    pub fn features(&self, pictures: &[Picture]) -> Result<B::Tensor> {
        if pictures.is_empty() {
            return Err(Error::Config("expected a picture but found none".into()));
        }
        let side = self.preprocess.crop_size;
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * side * side);
        for picture in pictures {
            pixels.extend(preprocess(picture, &self.preprocess)?);
        }
        let pixels = self.backend.upload(&pixels, &[pictures.len(), 3, side, side])?;
        self.vision.features(&self.backend, &pixels, self.projections.conventions().image_feature)
    }

    /// Unit vectors (B, J) of features of B pictures, row-major.
    ///
    /// # Errors
    /// What the backend refuses.
    pub async fn image_embedding(&self, features: &B::Tensor) -> Result<Vec<f32>> {
        self.backend.read(&self.projections.image_embedding(&self.backend, features)?).await
    }

    /// Unit vector (J) of a text.
    ///
    /// # Errors
    /// [`Error::Config`] for a text longer than the context or with bytes that have no token.
    pub async fn text_embedding(&self, text: &str) -> Result<Vec<f32>> {
        let (backend, ids) = (&self.backend, sequence::text_ids(&self.tokenizer, text)?);
        let hidden = sequence::retrieval_hidden(backend, &self.llama, &self.projections, &[ids])?;
        backend.read(&self.projections.text_embedding(backend, &hidden)?).await
    }

    /// Begins the caption of one picture's features, of [`Captioner::features`].
    ///
    /// # Errors
    /// [`Error::Config`] for options out of range, for several pictures, and where the context has no room.
    pub fn stream(&self, features: &B::Tensor, options: &DecodeOptions) -> Result<CaptionStream<'_, B>> {
        CaptionStream::new(self, features, options)
    }

    /// The caption of one picture's features, of [`Captioner::features`].
    ///
    /// # Errors
    /// As [`Captioner::stream`].
    pub async fn caption(&self, features: &B::Tensor, options: &DecodeOptions) -> Result<String> {
        let mut stream = self.stream(features, options)?;
        let mut text = String::new();
        while let Some(piece) = stream.next().await? {
            text.push_str(&piece);
        }
        Ok(text)
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The language model.
    pub fn llama(&self) -> &Llama<B> {
        &self.llama
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The vision tower.
    pub fn vision(&self) -> &ClipVision<B> {
        &self.vision
    }

    /// How pictures become its input.
    pub fn preprocess(&self) -> &PreprocessConfig {
        &self.preprocess
    }

    /// The trained maps.
    pub fn projections(&self) -> &Projections<B> {
        &self.projections
    }

    /// Ids between a picture and its caption: begin of text and the prompt of the projections, where there are such.
    pub fn caption_start(&self) -> &[u32] {
        &self.start
    }

    /// Which bundle it is: embeddings of different bundles do not compare.
    pub fn bundle_id(&self) -> &str {
        &self.bundle_id
    }

    /// For each id whether captions may hold it (V), as [`Backend::argmax`] takes it.
    pub(crate) fn mask(&self) -> &B::Tensor {
        &self.mask
    }

    /// Ids that no caption holds, in order.
    pub fn banned(&self) -> &[u32] {
        &self.banned
    }
}

fn same_length(entry: &FileEntry, source: &impl ByteSource) -> Result<()> {
    if source.len() == entry.bytes {
        return Ok(());
    }
    Err(Error::Malformed(format!(
        "expected {} bytes but found {}\nthe file is cut short or from another bundle: fetch it again",
        entry.bytes,
        source.len()
    )))
    .at(&entry.path)
}

fn fits(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Config(format!("{what}: expected {expected} but found {found}\nthe models are not of one bundle")))
}

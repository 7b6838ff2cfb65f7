//! The frozen language model by whose captions a tower learns.

use candle_core::Tensor;
use rscapret::{Backend, Candle, Error, Result, caption::sequence::caption_start, llama::Llama, tokenizer::Tokenizer};

use super::config::Captioning;
use crate::{
    bridge::open_llm,
    captioning::{Caption, Writer, ends_texts},
    hub,
};

/// A language model that writes captions by visual tokens, which a map of [`super::model::SmallClip`] makes of features.
pub(super) struct Decoder {
    pub backend: Candle,
    pub llama: Llama<Candle>,
    pub tokenizer: Tokenizer,
    /// Ids between an image and its caption.
    pub start: Vec<u32>,
    pub config: Captioning,
}

impl Decoder {
    /// # Errors
    /// As [`open_llm`]; a tokenizer without an end of text.
    pub fn open(backend: &Candle, config: &Captioning) -> Result<Self> {
        let (llama, tokenizer) = open_llm(backend, &hub::llm(&config.llm)?)?;
        ends_texts(&tokenizer)?;
        let (start, config) = (caption_start(&tokenizer, "")?, config.clone());
        Ok(Decoder { backend: backend.clone(), llama, tokenizer, start, config })
    }

    /// Numbers that the map makes of an image: k visual tokens of width D.
    pub fn inputs(&self) -> usize {
        self.config.visual_tokens * self.llama.config().hidden_size
    }

    /// A caption as it writes it.
    ///
    /// # Errors
    /// [`Error::Config`] for bytes that have no token, and where the context has no room.
    pub fn caption(&self, text: &str, string: usize) -> Result<Caption> {
        let caption = Caption::new(&self.tokenizer, text, self.config.max_length, string)?;
        let needed = self.config.visual_tokens + self.start.len() + caption.tokens.len();
        let context = self.llama.config().max_position_embeddings;
        if needed > context {
            return Err(Error::Config(format!(
                "captioning: expected a language model with a context of at least {needed} tokens, a caption with its image, but \
                 found {context}\nlower `max_length` or `visual_tokens`"
            )));
        }
        Ok(caption)
    }

    /// A share's part of the mean cross-entropy over `tokens` labels, by what the map makes of the images (N, k D).
    ///
    /// # Errors
    /// What the model answers.
    pub fn loss(&self, mapped: &Tensor, captions: &[&Caption], tokens: usize) -> Result<Tensor> {
        let Decoder { backend, llama, tokenizer, start, config } = self;
        let size = [captions.len(), config.visual_tokens, llama.config().hidden_size];
        let writer = Writer { backend, llama, tokenizer, start };
        writer.loss(&backend.reshape(mapped, &size)?, captions, &vec![1; captions.len()], tokens, 0.0)
    }

    /// Of its loss beside the others.
    pub fn weight(&self) -> f64 {
        self.config.weight
    }
}

//! The loss of captions that a frozen language model is to write of images: the bridge's, and that of a tower which is to learn by
//! it.

use candle_core::Tensor;
use rscapret::{
    Candle, Error, Result,
    caption::sequence::{Part, interleaved_input, rows_of},
    llama::Llama,
    tokenizer::Tokenizer,
};

use crate::loss::cross_entropy;

/// One caption of an image, as a language model writes it.
#[derive(Debug, Clone)]
pub struct Caption {
    /// As written.
    pub text: String,
    /// Of the text alone.
    pub tokens: Vec<u32>,
    /// Whether they are the whole text.
    pub whole: bool,
    /// Which distinct string it is.
    pub string: usize,
}

impl AsRef<str> for Caption {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Caption {
    /// Of a text, cut to `max_length` tokens, begin of text counted where the model has one.
    ///
    /// # Errors
    /// [`Error::Config`] where the vocabulary has no token for some byte of the text.
    pub fn new(tokenizer: &Tokenizer, text: &str, max_length: usize, string: usize) -> Result<Self> {
        let mut tokens = tokenizer.encode(text, false)?;
        let most = max_length.saturating_sub(usize::from(tokenizer.bos().is_some()));
        let whole = tokens.len() <= most;
        tokens.truncate(most);
        Ok(Caption { text: text.to_string(), tokens, whole, string })
    }

    /// Labels that it gives: its tokens, and end of text where nothing was cut.
    pub fn labels(&self) -> usize {
        self.tokens.len() + usize::from(self.whole)
    }

    /// [BOS text], as retrieval reads it.
    pub fn retrieval_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        tokenizer.bos().into_iter().chain(self.tokens.iter().copied()).collect()
    }
}

/// # Errors
/// [`Error::Config`] for a tokenizer without an end of text, which captions end with.
pub fn ends_texts(tokenizer: &Tokenizer) -> Result<()> {
    match tokenizer.eos() {
        Some(_) => Ok(()),
        None => Err(Error::Config("tokenizer: expected an end of text but found none".into())),
    }
}

/// What writes captions.
pub struct Writer<'a> {
    /// Where it computes.
    pub backend: &'a Candle,
    /// The frozen language model.
    pub llama: &'a Llama<Candle>,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Ids between an image and its caption: begin of text and a prompt, where there are such.
    pub start: &'a [u32],
}

impl Writer<'_> {
    /// A share's part of the loss, whose sum over all shares is the mean over `tokens` labels. Visual tokens (N, k, D) and
    /// captions belong together; `lengths` of them, one after the other, stand in one sequence. `smoothing` as
    /// [`cross_entropy`] has it.
    ///
    /// # Errors
    /// What the model answers.
    pub fn loss(
        &self,
        visual_tokens: &Tensor,
        captions: &[&Caption],
        lengths: &[usize],
        tokens: usize,
        smoothing: f64,
    ) -> Result<Tensor> {
        let Writer { backend, llama, tokenizer, start } = *self;
        let ids: Vec<Vec<u32>> = captions.iter().map(|caption| [start, &caption.tokens].concat()).collect();
        let mut next = 0;
        let sequences: Vec<Vec<Part<'_>>> = lengths
            .iter()
            .map(|length| {
                next += length;
                (next - length..next).flat_map(|i| [Part::Picture(i), Part::Ids(&ids[i])]).collect()
            })
            .collect();
        let input = interleaved_input(backend, llama, visual_tokens, &sequences)?;
        let hidden = llama.forward(backend, &input.x, None)?;
        // The hidden state before the caption gives the first label, the one at its last token the end of text.
        let texts = input.starts.iter().flat_map(|starts| starts.iter().skip(1).step_by(2));
        let (mut rows, mut labels) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        for (caption, at) in captions.iter().zip(texts) {
            let before = at + start.len() - 1;
            for t in 0..caption.labels() {
                rows.push((before + t) as u32);
                labels.push(caption.tokens.get(t).copied().or(tokenizer.eos()));
            }
        }
        let logits = llama.logits(backend, &rows_of(backend, &hidden, &rows)?)?;
        cross_entropy(&logits, &labels, smoothing, tokens)
    }
}

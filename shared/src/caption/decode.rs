//! One caption while it is decoded.

use super::{
    Captioner, DecodeOptions,
    ahead::Ahead,
    sampling::{self, BeamSearch, Sampler, log_softmax},
    sequence,
    stream::DecodeStream,
};
use crate::{
    backend::Backend,
    error::{Error, Result},
    llama::KvCache,
};

/// How far a caption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeStats {
    /// Rows before the caption: visual tokens, begin of text, the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the caption so far, its end not counted.
    pub tokens: usize,
    /// Whether the model ended it, rather than the greatest length.
    pub ended: bool,
}

/// A caption in pieces; together they are the caption, without white space around it. Dropping it stops the work.
pub struct CaptionStream<'c, B: Backend> {
    captioner: &'c Captioner<B>,
    cache: KvCache<B>,
    /// What the model reads next (B, T, D); nothing when the caption is done, or the device has read it already.
    input: Option<B::Tensor>,
    /// Tokens that the device has chosen, or will, and that the host has not heard of.
    ahead: Ahead<B>,
    choice: Choice,
    /// Most tokens: what was asked for, or what the context has room for.
    max_tokens: usize,
    text: Trimmed<'c>,
    ids: Vec<u32>,
    stats: DecodeStats,
}

enum Choice {
    Token(Box<Sampler>),
    Beams { search: BeamSearch, beams: usize },
}

impl<'c, B: Backend> CaptionStream<'c, B> {
    pub(super) fn new(captioner: &'c Captioner<B>, features: &B::Tensor, options: &DecodeOptions) -> Result<Self> {
        options.check()?;
        let (backend, llama, tokenizer) = (captioner.backend(), captioner.llama(), captioner.tokenizer());
        let shape = backend.shape(features);
        if shape.first() != Some(&1) {
            return Err(Error::Config(format!("expected features of one picture (1, width) but found {shape:?}")));
        }
        let visual = captioner.projections().visual_tokens(backend, features)?;
        let start = captioner.caption_start().to_vec();
        let input = sequence::captioning_input(backend, llama, &visual, &[start])?;
        let prompt_tokens = backend.shape(&input)[1];
        let context = llama.config().max_position_embeddings;
        // The last token is chosen and never read.
        let max_tokens = options.max_tokens.min((context + 1).saturating_sub(prompt_tokens));
        if max_tokens == 0 {
            return Err(Error::Config(format!(
                "expected a context with room for {prompt_tokens} tokens and a caption but found {context}"
            )));
        }
        let input = backend.repeat_rows(&input, options.beams)?;
        let choice = match options.beams {
            1 => Choice::Token(Box::new(options.sampler()?)),
            beams => Choice::Beams { search: options.search(tokenizer.eos(), max_tokens)?, beams },
        };
        Ok(CaptionStream {
            captioner,
            cache: KvCache::new(backend, llama.config(), options.beams, prompt_tokens + max_tokens - 1)?,
            input: Some(input),
            ahead: Ahead::default(),
            choice,
            max_tokens,
            text: Trimmed::new(DecodeStream::new(tokenizer)),
            ids: Vec::new(),
            stats: DecodeStats { prompt_tokens, ..DecodeStats::default() },
        })
    }

    /// The text that one more token makes certain, perhaps none (`Some("")`); `None` after the end. A beam search gives the
    /// whole caption at its end and nothing before, one step each call.
    ///
    /// # Errors
    /// [`Error::Backend`] if the device fails or the model's logits are no numbers.
    pub async fn next(&mut self) -> Result<Option<String>> {
        if self.ahead.is_asked() {
            return self.take_chosen().await.map(Some);
        }
        let Some(input) = self.input.take() else { return Ok(None) };
        let logits = self.logits(&input)?;
        match &mut self.choice {
            Choice::Token(sampler) => match self.ahead.begin(self.captioner, logits, sampler).await? {
                Some(id) => self.take_token(id),
                None => self.take_chosen().await,
            },
            Choice::Beams { .. } => {
                let logits = self.captioner.backend().read(&logits).await?;
                self.advance_beams(logits.chunks_exact(self.captioner.llama().config().vocab_size))
            }
        }
        .map(Some)
    }

    async fn take_chosen(&mut self) -> Result<String> {
        let Choice::Token(sampler) = &mut self.choice else { return Ok(String::new()) };
        let goes_on = self.stats.tokens + 1 < self.max_tokens;
        let id = self.ahead.take(self.captioner, &mut self.cache, sampler, goes_on).await?;
        let (text, goes_on) = self.accept(id)?;
        if !goes_on {
            self.ahead = Ahead::default();
        }
        Ok(text)
    }

    /// The caption's tokens so far, its end not among them; of a beam search, none before its end.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How far it is.
    pub fn stats(&self) -> DecodeStats {
        self.stats
    }

    /// Reads the input and gives the logits that follow each sequence (sequences, V).
    fn logits(&mut self, input: &B::Tensor) -> Result<B::Tensor> {
        let (backend, llama) = (self.captioner.backend(), self.captioner.llama());
        let hidden = llama.forward(backend, input, Some(&mut self.cache))?;
        let shape = backend.shape(&hidden);
        let last = backend.narrow(&hidden, 1, shape[1] - 1, 1)?;
        llama.logits(backend, &backend.reshape(&last, &[shape[0], shape[2]])?)
    }

    fn take_token(&mut self, id: u32) -> Result<String> {
        let (text, goes_on) = self.accept(id)?;
        if goes_on {
            self.input = Some(self.embed(&[id])?);
        }
        Ok(text)
    }

    /// The text that a token makes certain, and whether another one follows.
    fn accept(&mut self, id: u32) -> Result<(String, bool)> {
        if Some(id) == self.captioner.tokenizer().eos() {
            self.stats.ended = true;
            return Ok((self.text.finish(), false));
        }
        self.stats.tokens += 1;
        self.ids.push(id);
        let mut text = self.text.push(id)?;
        let goes_on = self.stats.tokens < self.max_tokens;
        if !goes_on {
            text.push_str(&self.text.finish());
        }
        Ok((text, goes_on))
    }

    fn advance_beams<'l>(&mut self, rows: impl Iterator<Item = &'l [f32]>) -> Result<String> {
        let Choice::Beams { search, beams } = &mut self.choice else { return Ok(String::new()) };
        let beams = *beams;
        let mut scores = Vec::with_capacity(search.live());
        for logits in rows.take(search.live()) {
            // As Hugging Face does: what is banned keeps its share of the probability.
            let mut row = log_softmax(logits)?;
            sampling::ban(&mut row, self.captioner.banned());
            scores.push(row);
        }
        let mut step = search.advance(&scores)?;
        if let Some(best) = search.best().filter(|_| search.done()) {
            self.stats = DecodeStats { tokens: best.tokens.len(), ended: best.ended, ..self.stats };
            self.ids.clone_from(&best.tokens);
            let mut text = String::new();
            for &id in &best.tokens {
                text.push_str(&self.text.push(id)?);
            }
            return Ok(text + &self.text.finish());
        }
        if search.done() {
            return Err(Error::Backend("expected a token that is not banned but found none".into()));
        }
        self.stats.tokens += 1;
        // The batch keeps its size; rows beyond the live beams are not read.
        step.parents.resize(beams, 0);
        step.tokens.resize(beams, step.tokens.first().copied().unwrap_or_default());
        self.cache.reorder(self.captioner.backend(), &step.parents)?;
        self.input = Some(self.embed(&step.tokens)?);
        Ok(String::new())
    }

    /// One token for each sequence: ids -> (ids, 1, D).
    fn embed(&self, ids: &[u32]) -> Result<B::Tensor> {
        let (backend, llama) = (self.captioner.backend(), self.captioner.llama());
        backend.reshape(&llama.embed(backend, ids)?, &[ids.len(), 1, llama.config().hidden_size])
    }
}

/// Text of tokens without white space at either end: inner white space waits until text follows it.
pub(crate) struct Trimmed<'t> {
    stream: Option<DecodeStream<'t>>,
    begun: bool,
    space: String,
}

impl<'t> Trimmed<'t> {
    pub(crate) fn new(stream: DecodeStream<'t>) -> Self {
        Trimmed { stream: Some(stream), begun: false, space: String::new() }
    }

    pub(crate) fn push(&mut self, id: u32) -> Result<String> {
        let piece = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        Ok(self.certain(&piece))
    }

    /// What is left of a character that was cut.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.stream.take().map(DecodeStream::finish).unwrap_or_default();
        self.certain(&rest)
    }

    fn certain(&mut self, piece: &str) -> String {
        let piece = if self.begun { piece } else { piece.trim_start() };
        let text = piece.trim_end();
        if text.is_empty() {
            if self.begun {
                self.space.push_str(piece);
            }
            return String::new();
        }
        self.begun = true;
        let out = std::mem::take(&mut self.space) + text;
        self.space.push_str(&piece[text.len()..]);
        out
    }
}

//! Pictures and texts in turns: one sequence that grows, read once.
//!
//! ```text
//! [N visual tokens] [BOS prompt text] [answer] [N visual tokens] [text] [answer] ... [text] [RET]?
//! ```
//!
//! Begin of text stands once, before the first text, as in FROMAGe (Koh et al., 2023); the prompt of the projections only
//! where the first text is an answer. [RET] is asked at the end of a turn
//! and forgotten again: its hidden state is the query, the dialogue goes on as if it had not been there. A first picture is
//! answered by its caption, and a first text asks [RET] for the same embedding as [`Captioner::text_embedding`].

use crate::{
    backend::Backend,
    caption::{Ahead, Captioner, DecodeOptions, Trimmed, sampling::Sampler, stream::DecodeStream},
    error::{Error, Result},
    llama::KvCache,
};

/// A conversation with a bundle.
pub struct Dialogue<'c, B: Backend> {
    captioner: &'c Captioner<B>,
    cache: KvCache<B>,
    /// What the model has not read yet (1, T, D), and T.
    pending: Option<(B::Tensor, usize)>,
    /// Whether begin of text has been there.
    begun: bool,
}

impl<'c, B: Backend> Dialogue<'c, B> {
    /// Of at most `context` tokens, those of pictures and answers among them; the memory of all is taken now.
    ///
    /// # Errors
    /// [`Error::Config`] if the model was not made for so many tokens.
    pub fn new(captioner: &'c Captioner<B>, context: usize) -> Result<Self> {
        let cache = KvCache::new(captioner.backend(), captioner.llama().config(), 1, context)?;
        Ok(Dialogue { captioner, cache, pending: None, begun: false })
    }

    /// Tokens that it consists of so far.
    pub fn len(&self) -> usize {
        self.cache.seen() + self.pending.as_ref().map_or(0, |(_, tokens)| *tokens)
    }

    /// Whether nothing was shown or said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that it can still grow by.
    pub fn room(&self) -> usize {
        self.cache.capacity().saturating_sub(self.len())
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cache.truncate(0);
        (self.pending, self.begun) = (None, false);
    }

    /// Shows the features of one picture, from [`Captioner::features`].
    ///
    /// # Errors
    /// [`Error::Config`] for several pictures and where there is no room; nothing has changed then.
    pub fn see(&mut self, features: &B::Tensor) -> Result<()> {
        let (backend, projections) = (self.captioner.backend(), self.captioner.projections());
        let shape = backend.shape(features);
        if shape.first() != Some(&1) {
            return Err(Error::Config(format!("expected features of one picture (1, width) but found {shape:?}")));
        }
        let visual = projections.visual_tokens(backend, features)?;
        self.push(visual, projections.tokens_of_image())
    }

    /// Says a text.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty text, one with bytes that have no token, and where there is no room; nothing has
    /// changed then.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let tokenizer = self.captioner.tokenizer();
        // Words of two turns are two words.
        let apart = self.begun && !tokenizer.space_prefix();
        let ids = tokenizer.encode(&if apart { format!(" {text}") } else { text.to_string() }, false)?;
        if text.trim().is_empty() || ids.is_empty() {
            return Err(Error::Config("expected a text but found an empty one".into()));
        }
        self.push_text(&ids)
    }

    /// Lets the model speak. Of `options`, beams must be 1.
    ///
    /// # Errors
    /// [`Error::Config`] for options out of range, where nothing was shown or said since the model spoke, and where
    /// there is no room.
    pub fn answer(&mut self, options: &DecodeOptions) -> Result<Answer<'_, 'c, B>> {
        options.check()?;
        if options.beams != 1 {
            return Err(Error::Config(format!("dialogue: expected 1 beam but found {}", options.beams)));
        }
        if self.pending.is_none() {
            return Err(Error::Config("expected a picture or a text to answer but found nothing new".into()));
        }
        if !self.begun {
            // As in training: begin of text, which `push_text` puts there, and the prompt.
            let begin = usize::from(self.captioner.tokenizer().bos().is_some());
            let prompt = self.captioner.caption_start()[begin..].to_vec();
            self.push_text(&prompt)?;
        }
        // The last token is chosen and need not be read.
        let max_tokens = options.max_tokens.min(self.room() + 1);
        let text = Trimmed::new(DecodeStream::new(self.captioner.tokenizer()));
        let (sampler, kept) = (options.sampler()?, self.cache.seen());
        let (ids, ahead) = (Vec::new(), Ahead::default());
        Ok(Answer { sampler, max_tokens, text, ids, ahead, kept, done: false, dialogue: self })
    }

    /// Says a text, if it is not empty, and asks [RET] after it and all that was there before: the unit vector (J) to look for
    /// in a [`crate::retrieval::RetrievalIndex`].
    ///
    /// # Errors
    /// As [`Dialogue::say`]; [`Error::Config`] for no text where there was nothing before.
    pub async fn find(&mut self, text: &str) -> Result<Vec<f32>> {
        let (backend, projections) = (self.captioner.backend(), self.captioner.projections());
        let (before, begun) = (self.pending.clone(), self.begun);
        match (text.trim().is_empty(), self.is_empty()) {
            (false, _) => self.say(text)?,
            (true, false) => {}
            (true, true) => {
                return Err(Error::Config("expected a picture or a text before [RET] but found none".into()));
            }
        }
        let d = self.captioner.llama().config().hidden_size;
        let ret = backend.reshape(projections.ret_embedding(), &[1, 1, d])?;
        if let Err(error) = self.push(ret, 1) {
            (self.pending, self.begun) = (before, begun);
            return Err(error);
        }
        let hidden = self.read(projections.conventions().hidden_layer)?;
        self.cache.truncate(self.cache.seen().saturating_sub(1));
        backend.read(&projections.text_embedding(backend, &hidden)?).await
    }

    /// Ids of a text, after begin of text if it is the first.
    fn push_text(&mut self, ids: &[u32]) -> Result<()> {
        let (backend, llama, tokenizer) =
            (self.captioner.backend(), self.captioner.llama(), self.captioner.tokenizer());
        let begin = tokenizer.bos().filter(|_| !self.begun);
        let ids: Vec<u32> = begin.into_iter().chain(ids.iter().copied()).collect();
        if !ids.is_empty() {
            let rows = llama.embed(backend, &ids)?;
            let rows = backend.reshape(&rows, &[1, ids.len(), llama.config().hidden_size])?;
            self.push(rows, ids.len())?;
        }
        self.begun = true;
        Ok(())
    }

    /// Rows (1, tokens, D) that the model is to read.
    fn push(&mut self, rows: B::Tensor, tokens: usize) -> Result<()> {
        if tokens > self.room() {
            return Err(Error::Config(format!(
                "expected room for {tokens} more tokens but found {} of {}\nbegin anew, or with a larger context",
                self.room(),
                self.cache.capacity()
            )));
        }
        self.pending = Some(match &self.pending {
            Some((before, count)) => (self.captioner.backend().concat(&[before, &rows], 1)?, count + tokens),
            None => (rows, tokens),
        });
        Ok(())
    }

    /// Lets the model read what is pending: the hidden state of its last row (1, D), of the last layer or of another.
    fn read(&mut self, layer: Option<usize>) -> Result<B::Tensor> {
        let (backend, llama) = (self.captioner.backend(), self.captioner.llama());
        let Some((rows, tokens)) = self.pending.take() else {
            return Err(Error::Config("expected something to read but found nothing".into()));
        };
        let layer = layer.unwrap_or(llama.config().num_hidden_layers);
        let hidden = llama.hidden_states(backend, &rows, Some(&mut self.cache), &[layer])?.swap_remove(0);
        let last = backend.narrow(&hidden, 1, tokens - 1, 1)?;
        backend.reshape(&last, &[1, llama.config().hidden_size])
    }
}

/// What the model says, in pieces; together they are the answer, without white space around it. What was said so far when
/// it is dropped stays in the dialogue.
pub struct Answer<'d, 'c, B: Backend> {
    dialogue: &'d mut Dialogue<'c, B>,
    sampler: Sampler,
    max_tokens: usize,
    text: Trimmed<'c>,
    ids: Vec<u32>,
    ahead: Ahead<B>,
    /// Tokens that the cache has for good: what was read ahead is not among them.
    kept: usize,
    done: bool,
}

impl<B: Backend> Drop for Answer<'_, '_, B> {
    fn drop(&mut self) {
        self.dialogue.cache.truncate(self.kept);
    }
}

impl<B: Backend> Answer<'_, '_, B> {
    /// The text that one more token makes certain, perhaps none (`Some("")`); `None` after the end. The end of text is no
    /// part of the dialogue.
    ///
    /// # Errors
    /// [`Error::Backend`] if the device fails or the model's logits are no numbers.
    pub async fn next(&mut self) -> Result<Option<String>> {
        if self.done {
            return Ok(None);
        }
        let id = self.choose().await?;
        let captioner = self.dialogue.captioner;
        if Some(id) == captioner.tokenizer().eos() {
            self.done = true;
            return Ok(Some(self.text.finish()));
        }
        self.ids.push(id);
        let mut text = self.text.push(id)?;
        self.done = self.ids.len() >= self.max_tokens;
        if self.done {
            text.push_str(&self.text.finish());
        }
        if self.dialogue.cache.seen() > self.kept {
            // The model has read it already.
            self.kept = self.dialogue.cache.seen();
        } else if self.dialogue.room() > 0 {
            // Without room for it the token is said and not kept: nothing can follow it anyway.
            self.dialogue.push_text(&[id])?;
        }
        Ok(Some(text))
    }

    /// The next token, chosen by the device where that can.
    async fn choose(&mut self) -> Result<u32> {
        let captioner = self.dialogue.captioner;
        if !self.ahead.is_asked() {
            let logits = captioner.llama().logits(captioner.backend(), &self.dialogue.read(None)?)?;
            self.kept = self.dialogue.cache.seen();
            if let Some(id) = self.ahead.begin(captioner, logits, &mut self.sampler).await? {
                return Ok(id);
            }
        }
        let goes_on = self.ids.len() + 1 < self.max_tokens;
        self.ahead.take(captioner, &mut self.dialogue.cache, &mut self.sampler, goes_on).await
    }

    /// Tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

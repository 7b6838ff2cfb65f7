//! Tokens that the device chooses, a step before the host hears of them.

use super::{
    Captioner,
    sampling::{Sampler, ban},
};
use crate::{
    backend::{Backend, Chosen},
    error::{Error, Result},
    llama::KvCache,
};

/// The token that is waited for, and the one after it, which the device has been asked for already.
pub(crate) struct Ahead<B: Backend> {
    now: Option<Chosen<B>>,
    next: Option<Chosen<B>>,
}

impl<B: Backend> Default for Ahead<B> {
    fn default() -> Self {
        Ahead { now: None, next: None }
    }
}

impl<B: Backend> Ahead<B> {
    /// Whether the device was asked for a token that nobody has taken.
    pub(crate) fn is_asked(&self) -> bool {
        self.now.is_some() || self.next.is_some()
    }

    /// Chooses the first token by logits (1, V): `None` where the device was asked for it, and [`Ahead::take`] gives it.
    pub(crate) async fn begin(
        &mut self,
        captioner: &Captioner<B>,
        logits: B::Tensor,
        sampler: &mut Sampler,
    ) -> Result<Option<u32>> {
        let backend = captioner.backend();
        if !sampler.takes_largest() {
            let mut logits = backend.read(&logits).await?;
            ban(&mut logits, captioner.banned());
            return sampler.sample(&logits).map(Some);
        }
        let noise = noise_for(backend, sampler, captioner.llama().config().vocab_size)?;
        let logits = with_noise(backend, logits, noise)?;
        self.now = backend.choose(&logits, captioner.mask(), None)?;
        match self.now {
            Some(_) => Ok(None),
            None => one(&backend.argmax(&logits, captioner.mask()).await?).map(Some),
        }
    }

    /// The next token. If `goes_on`, the device is given that token's own step before the answer is waited for, so `cache`
    /// holds it as well; for the end of a text that was in vain. Who stops to wait can ask again.
    pub(crate) async fn take(
        &mut self,
        captioner: &Captioner<B>,
        cache: &mut KvCache<B>,
        sampler: &mut Sampler,
        goes_on: bool,
    ) -> Result<u32> {
        let (backend, llama) = (captioner.backend(), captioner.llama());
        if self.now.is_none() {
            self.now = self.next.take();
        }
        let Some(now) = &mut self.now else {
            return Err(Error::Backend("expected a token on its way but found none".into()));
        };
        if goes_on && self.next.is_none() {
            // Noise first: what is written makes the device be sent all that came before.
            let noise = noise_for(backend, sampler, llama.config().vocab_size)?;
            let logits = with_noise(backend, llama.decode(backend, &now.ids, cache)?, noise)?;
            self.next = backend.choose(&logits, captioner.mask(), Some(&now.ids))?;
        }
        let ids = (&mut now.answer).await;
        self.now = None;
        one(&ids?)
    }
}

/// What a sampler that draws from all tokens adds to logits (1, V), so that the largest is its draw; nothing where it draws
/// otherwise.
fn noise_for<B: Backend>(backend: &B, sampler: &mut Sampler, vocabulary: usize) -> Result<Option<B::Tensor>> {
    sampler.noise(vocabulary).map(|noise| backend.upload(&noise, &[1, vocabulary])).transpose()
}

/// Logits (1, V) with the noise, if there is any.
fn with_noise<B: Backend>(backend: &B, logits: B::Tensor, noise: Option<B::Tensor>) -> Result<B::Tensor> {
    match noise {
        Some(noise) => backend.add(&logits, &noise),
        None => Ok(logits),
    }
}

/// The id of one row.
fn one(ids: &[u32]) -> Result<u32> {
    ids.first().copied().ok_or_else(|| Error::Backend("expected a token but found none".into()))
}

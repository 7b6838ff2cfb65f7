//! The sequences that the language model reads: of the trainer and of the captioner alike.
//!
//! ```text
//! captioning  [k visual tokens][BOS text]   retrieval  [BOS text][RET]
//! ```
//!
//! Sequences of a batch are padded at their ends, where a causal model cannot see it.

use crate::{
    backend::Backend,
    error::{Error, Result},
    llama::Llama,
    tokenizer::Tokenizer,
};

/// [BOS text]: the ids of a text after begin of text, where the model has one. No end of text.
///
/// # Errors
/// [`Error::Config`] where the vocabulary has no token for some byte of the text.
pub fn text_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
    ids.extend(tokenizer.encode(text, false)?);
    Ok(ids)
}

/// Input of captioning, [visual tokens][ids]: visual tokens (B, k, D) and B sequences of ids -> (B, k + T, D), T the longest
/// of them.
///
/// # Errors
/// [`Error::Config`] for another number of sequences; what the backend refuses.
pub fn captioning_input<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    visual_tokens: &B::Tensor,
    ids: &[Vec<u32>],
) -> Result<B::Tensor> {
    let batch = backend.shape(visual_tokens)[0];
    if batch != ids.len() {
        return Err(Error::Config(format!("expected one text for each of {batch} pictures but found {}", ids.len())));
    }
    let tokens = longest(ids);
    if tokens == 0 {
        return Ok(visual_tokens.clone());
    }
    let padded: Vec<u32> = ids.iter().flat_map(|ids| padded(ids, tokens, 0)).collect();
    let text = backend.reshape(&llama.embed(backend, &padded)?, &[batch, tokens, llama.config().hidden_size])?;
    backend.concat(&[visual_tokens, &text], 1)
}

/// Input of retrieval.
#[derive(Clone)]
pub struct RetrievalInput<B: Backend> {
    /// Input embeddings (B, T, D).
    pub x: B::Tensor,
    /// Where each [RET] stands, as rows of (B T, D).
    pub rows: Vec<u32>,
}

/// Input of retrieval, [ids][RET], for B sequences of ids ([`text_ids`]); `ret_embedding` is (D).
///
/// # Errors
/// [`Error::Config`] for no sequences; what the backend refuses.
pub fn retrieval_input<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    ret_embedding: &B::Tensor,
    ids: &[Vec<u32>],
) -> Result<RetrievalInput<B>> {
    if ids.is_empty() {
        return Err(Error::Config("expected a text but found none".into()));
    }
    let d = llama.config().hidden_size;
    let tokens = longest(ids) + 1;
    // [RET] is one more row after the texts' own: a table to pick the sequences from, through which it is trained.
    let all: Vec<u32> = ids.concat();
    let ret = backend.reshape(ret_embedding, &[1, d])?;
    let table = match all.len() {
        0 => ret,
        _ => backend.concat(&[&llama.embed(backend, &all)?, &ret], 0)?,
    };
    let ret = all.len() as u32;
    let (mut picked, mut rows, mut next) = (Vec::with_capacity(ids.len() * tokens), Vec::new(), 0u32);
    for (i, ids) in ids.iter().enumerate() {
        let end = next + ids.len() as u32;
        let sequence: Vec<u32> = (next..end).collect();
        rows.push((i * tokens + ids.len()) as u32);
        picked.extend(padded(&sequence, tokens, ret));
        next = end;
    }
    let x = backend.reshape(&backend.index_rows(&table, &picked)?, &[ids.len(), tokens, d])?;
    Ok(RetrievalInput { x, rows })
}

/// Hidden states at [RET] (B, D) of B sequences of ids ([`text_ids`]).
///
/// # Errors
/// [`Error::Config`] for texts longer than the context; what the backend refuses.
pub fn retrieval_hidden<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    ret_embedding: &B::Tensor,
    ids: &[Vec<u32>],
) -> Result<B::Tensor> {
    let input = retrieval_input(backend, llama, ret_embedding, ids)?;
    let hidden = llama.forward(backend, &input.x, None)?;
    let shape = backend.shape(&hidden);
    let hidden = backend.reshape(&hidden, &[shape[0] * shape[1], shape[2]])?;
    backend.index_rows(&hidden, &input.rows)
}

fn longest(ids: &[Vec<u32>]) -> usize {
    ids.iter().map(Vec::len).max().unwrap_or_default()
}

fn padded(ids: &[u32], len: usize, padding: u32) -> impl Iterator<Item = u32> {
    ids.iter().copied().chain(std::iter::repeat(padding)).take(len)
}

//! The sequences that the language model reads: of the trainer and of the captioner alike.
//!
//! ```text
//! captioning  [N visual tokens][BOS prompt text]   retrieval  [BOS text][RET]
//! ```
//!
//! Sequences of a batch are padded at their ends, where a causal model cannot see it.

use crate::{
    backend::Backend,
    error::{Error, Result},
    llama::Llama,
    projection::Projections,
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

/// [BOS prompt]: what stands between a picture and its caption. An empty prompt is none.
///
/// # Errors
/// As [`text_ids`].
pub fn caption_start(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    if prompt.is_empty() { Ok(tokenizer.bos().into_iter().collect()) } else { text_ids(tokenizer, prompt) }
}

/// Input of captioning, [visual tokens][ids]: visual tokens (B, N, D) and B sequences of ids -> (B, N + T, D), T the longest
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

/// A stretch of a sequence.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// The visual tokens of the picture of this number.
    Picture(usize),
    /// Tokens.
    Ids(&'a [u32]),
}

/// Sequences of pictures and texts.
#[derive(Clone)]
pub struct InterleavedInput<B: Backend> {
    /// Input embeddings (B, T, D).
    pub x: B::Tensor,
    /// Where each part of each sequence begins, as rows of (B T, D).
    pub starts: Vec<Vec<usize>>,
}

/// Input of B sequences of pictures and texts in any order; `visual_tokens` is (pictures, N, D). Every part stands as it
/// would alone: each text may have its own begin of text.
///
/// # Errors
/// [`Error::Config`] for no tokens at all, or a picture that is not there; what the backend refuses.
pub fn interleaved_input<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    visual_tokens: &B::Tensor,
    sequences: &[Vec<Part<'_>>],
) -> Result<InterleavedInput<B>> {
    let shape = backend.shape(visual_tokens);
    let (pictures, k, d) = (shape[0], shape[1], llama.config().hidden_size);
    let length = |part: &Part<'_>| match part {
        Part::Picture(_) => k,
        Part::Ids(ids) => ids.len(),
    };
    let tokens = sequences.iter().map(|parts| parts.iter().map(length).sum()).max().unwrap_or_default();
    if tokens == 0 {
        return Err(Error::Config("expected pictures or texts but found none".into()));
    }
    // A table to pick the sequences from, through which the visual tokens are trained.
    let visual = backend.reshape(visual_tokens, &[pictures * k, d])?;
    let text = |part: &Part<'_>| match part {
        Part::Picture(_) => Vec::new(),
        Part::Ids(ids) => ids.to_vec(),
    };
    let ids: Vec<u32> = sequences.iter().flatten().flat_map(text).collect();
    let table = match ids.len() {
        0 => visual,
        _ => backend.concat(&[&visual, &llama.embed(backend, &ids)?], 0)?,
    };
    let (mut picked, mut starts, mut next) = (Vec::with_capacity(sequences.len() * tokens), Vec::new(), pictures * k);
    for (i, parts) in sequences.iter().enumerate() {
        let mut begins = Vec::with_capacity(parts.len());
        for part in parts {
            begins.push(picked.len());
            let first = match part {
                Part::Picture(at) if *at < pictures => at * k,
                Part::Picture(at) => {
                    return Err(Error::Config(format!("expected one of {pictures} pictures but found number {at}")));
                }
                Part::Ids(ids) => {
                    next += ids.len();
                    next - ids.len()
                }
            };
            picked.extend((first..first + length(part)).map(|row| row as u32));
        }
        // Padding is any row.
        picked.resize((i + 1) * tokens, 0);
        starts.push(begins);
    }
    let x = backend.reshape(&backend.index_rows(&table, &picked)?, &[sequences.len(), tokens, d])?;
    Ok(InterleavedInput { x, starts })
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

/// Hidden states at [RET] (B, D) of B sequences of ids ([`text_ids`]), of the layer that the projections were trained on.
///
/// # Errors
/// [`Error::Config`] for texts longer than the context; what the backend refuses.
pub fn retrieval_hidden<B: Backend>(
    backend: &B,
    llama: &Llama<B>,
    projections: &Projections<B>,
    ids: &[Vec<u32>],
) -> Result<B::Tensor> {
    let input = retrieval_input(backend, llama, projections.ret_embedding(), ids)?;
    let layer = projections.conventions().hidden_layer.unwrap_or(llama.config().num_hidden_layers);
    let hidden = llama.hidden_states(backend, &input.x, None, &[layer])?.swap_remove(0);
    rows_of(backend, &hidden, &input.rows)
}

/// Rows of hidden states (B, T, D) by their numbers in (B T, D) -> (rows, D).
///
/// # Errors
/// What the backend refuses.
pub fn rows_of<B: Backend>(backend: &B, hidden: &B::Tensor, rows: &[u32]) -> Result<B::Tensor> {
    let shape = backend.shape(hidden);
    backend.index_rows(&backend.reshape(hidden, &[shape[0] * shape[1], shape[2]])?, rows)
}

fn longest(ids: &[Vec<u32>]) -> usize {
    ids.iter().map(Vec::len).max().unwrap_or_default()
}

fn padded(ids: &[u32], len: usize, padding: u32) -> impl Iterator<Item = u32> {
    ids.iter().copied().chain(std::iter::repeat(padding)).take(len)
}

//! The frozen language model, from what `llm` names.

use std::path::Path;

use pollster::block_on;
use rscapret::{
    Candle, Context, Error, Result,
    llama::{Llama, load_llama, load_llama_checkpoint},
    tokenizer::Tokenizer,
    weights::gguf::MAGIC,
};

use crate::files::{
    FileSource,
    hugging_face::{HuggingFaceWeights, read_json},
};

/// The name of the trained token, which is no entry of the vocabulary.
const RET: &[u8] = b"[RET]";

/// Opens a Hugging Face Llama folder, its weights in one file or in shards, or a GGUF file, whose blocks stay as they are.
///
/// # Errors
/// With the path: a missing file, one that is no such model's, a tokenizer of another model, or one that has a token
/// `[RET]` already.
pub fn open_llm(backend: &Candle, path: &Path) -> Result<(Llama<Candle>, Tokenizer)> {
    let open = || {
        if path.is_dir() {
            let (config, tokenizer) = (read_json(path, "config.json")?, read_json(path, "tokenizer.json")?);
            let weights = HuggingFaceWeights::open(path)?;
            return block_on(load_llama_checkpoint(backend, &config, &weights, &tokenizer)).at(path.display());
        }
        let source = gguf(path)?;
        block_on(load_llama(backend, source)).at(path.display())
    };
    let (llama, tokenizer) = open()?;
    for id in 0..tokenizer.vocab_size() as u32 {
        if tokenizer.token_bytes(id)? == RET {
            return Err(Error::Config(format!(
                "expected a vocabulary without `[RET]`, which is trained beside it, but found it as id {id}\n\
                 take the tokenizer and the weights as they were published"
            )))
            .at(path.display());
        }
    }
    Ok((llama, tokenizer))
}

/// A GGUF file, by its first bytes.
///
/// # Errors
/// With the path: no readable file, or another kind of file.
pub fn gguf(path: &Path) -> Result<FileSource> {
    let source = FileSource::open(path)?;
    if !source.begins_with(&MAGIC)? {
        return Err(Error::Config(
            "expected a language model but found another kind of file\nname a Hugging Face folder or a GGUF file"
                .into(),
        ))
        .at(path.display());
    }
    Ok(source)
}

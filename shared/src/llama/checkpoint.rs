//! Llamas from files: a GGUF, or the parts of a Hugging Face folder.

use serde_json::Value;

use super::{Llama, LlamaConfig, tokenizer::Tokenizer};
use crate::{
    backend::Backend,
    error::{Context, Error, Result},
    nn::Checkpoint,
    weights::{
        ByteSource, TensorSource,
        gguf::{GgufFile, HfNames},
        quant,
    },
};

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Loads a GGUF of the `llama` architecture with its tokenizer.
///
/// # Errors
/// A file that is no such GGUF; a missing, extra or misshapen tensor; whatever the source answers.
pub async fn load_llama<B: Backend>(backend: &B, source: impl ByteSource) -> Result<(Llama<B>, Tokenizer)> {
    let file = GgufFile::open(source).await?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let llama = load_llama_gguf(backend, file).await?;
    ids_fit(&tokenizer, llama.config())?;
    Ok((llama, tokenizer))
}

/// As [`load_llama`], for whoever has ids already: without a tokenizer.
///
/// # Errors
/// As [`load_llama`].
pub async fn load_llama_gguf<B: Backend>(backend: &B, file: GgufFile<impl ByteSource>) -> Result<Llama<B>> {
    let rope_freqs = match file.info(ROPE_FREQS) {
        Some(_) => Some(quant::dequantize(&file.fetch(ROPE_FREQS).await?)?),
        None => None,
    };
    let config = LlamaConfig::from_gguf(file.metadata(), file.info("output.weight").is_some(), rope_freqs)?;
    let names = HfNames::new(file)?;
    let checkpoint = Checkpoint::new(backend, &names);
    let llama = Llama::load(&checkpoint, &config).await?;
    checkpoint.finish(|name| name != ROPE_FREQS)?;
    Ok(llama)
}

/// Loads a Hugging Face checkpoint: the bytes of `config.json`, its safetensors (one file or shards) and the bytes of
/// `tokenizer.json`.
///
/// # Errors
/// As [`load_llama`]; [`Error::Malformed`] if the word embeddings are tied but the file has another `lm_head.weight`.
pub async fn load_llama_checkpoint<B: Backend>(
    backend: &B,
    config_json: &[u8],
    weights: &impl TensorSource,
    tokenizer_json: &[u8],
) -> Result<(Llama<B>, Tokenizer)> {
    let tokenizer = with_ends_of(Tokenizer::from_json(tokenizer_json)?, config_json)?;
    let llama = load_llama_weights(backend, config_json, weights).await?;
    ids_fit(&tokenizer, llama.config())?;
    Ok((llama, tokenizer))
}

/// As [`load_llama_checkpoint`], for whoever has ids already: without a tokenizer.
///
/// # Errors
/// As [`load_llama_checkpoint`].
pub async fn load_llama_weights<B: Backend>(
    backend: &B,
    config_json: &[u8],
    weights: &impl TensorSource,
) -> Result<Llama<B>> {
    let config = LlamaConfig::from_json(config_json)?;
    let checkpoint = Checkpoint::new(backend, weights);
    let llama = Llama::load(&checkpoint, &config).await?;
    let tied_copy = config.tie_word_embeddings && weights.info(HEAD).is_some();
    if tied_copy {
        head_is_embedding(weights).await?;
    }
    // Old checkpoints hold the rotary frequencies, which follow from the configuration.
    checkpoint.finish(|name| !(name.ends_with(".rotary_emb.inv_freq") || tied_copy && name == HEAD))?;
    Ok(llama)
}

/// Some checkpoints with tied word embeddings hold the table twice; twice different would be two models.
pub(super) async fn head_is_embedding(weights: &impl TensorSource) -> Result<()> {
    if weights.fetch(HEAD).await? == weights.fetch(EMBEDDING).await? {
        return Ok(());
    }
    Err(Error::Malformed(format!(
        "expected `{HEAD}` to be `{EMBEDDING}`, to which config.json ties it, but found other values\nset \
         `tie_word_embeddings` to false if the head is its own"
    )))
}

/// Every id of the tokenizer must have a row. The table may have more (padding).
fn ids_fit(tokenizer: &Tokenizer, config: &LlamaConfig) -> Result<()> {
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(Error::Config(format!(
            "expected a tokenizer of at most {} ids, the rows of the embedding table, but found {}\n\
             it is another model's: take the tokenizer that was published with the weights",
            config.vocab_size,
            tokenizer.vocab_size()
        )));
    }
    Ok(())
}

/// `config.json` knows the ends of text; `tokenizer.json` only names special tokens. Of several ends the first counts.
fn with_ends_of(tokenizer: Tokenizer, config_json: &[u8]) -> Result<Tokenizer> {
    let json: Value = serde_json::from_slice(config_json)
        .map_err(|e| Error::Malformed(format!("expected a config.json but found: {e}")))?;
    let id = |name: &str| -> Result<Option<u32>> {
        let value = match &json[name] {
            Value::Array(ids) => ids.first().unwrap_or(&Value::Null),
            value => value,
        };
        match value {
            Value::Null => Ok(None),
            value => value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Some).ok_or_else(|| {
                Error::Malformed(format!("config.json: expected `{name}` to be a token's id but found {value}"))
            }),
        }
    };
    let bos = id("bos_token_id")?.or(tokenizer.bos());
    let eos = id("eos_token_id")?.or(tokenizer.eos());
    tokenizer.with_ends(bos, eos).at("config.json")
}

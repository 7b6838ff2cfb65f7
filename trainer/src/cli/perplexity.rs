//! `rscapret perplexity`: how well a language model expects a text.

use std::path::{Path, PathBuf};

use pollster::block_on;
use rscapret::{
    Backend, Candle, Context, Error, Result,
    bundle::MANIFEST,
    llama::{KvCache, Llama, load_llama, load_llama_weights},
    tokenizer::Tokenizer,
};
use serde::Serialize;

use super::{
    DeviceArgs,
    output::{self, counted},
    tokenize::{open_tokenizer, piece, read_text},
};
use crate::{
    files::{
        FileSource,
        hugging_face::{HuggingFaceWeights, read_json},
        open_bundle,
    },
    hub, progress,
};

/// Tokens that go through the model at once: bounds the memory of their logits.
const CHUNK: usize = 128;

/// Show how probable a language model finds every token of a text, and the perplexity
///
/// Every token but the first has a log-probability (natural logarithm) given all tokens before it. The perplexity is e to
/// the power of minus their mean: 1 for a text that the model knows by heart, the size of its vocabulary for noise. The
/// file is one text; the end of its last line is not part of it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret perplexity --llm models/demo/llm.gguf caption.txt
  rscapret perplexity --llm TinyLlama-1.1B/ ids.txt --ids --json")]
pub struct Args {
    /// The model: a GGUF, a bundle's folder, a Hugging Face folder (config.json, safetensors, tokenizer.json), or its
    /// name on the Hub
    #[arg(long, value_name = "GGUF_OR_FOLDER")]
    pub llm: PathBuf,

    /// The text, UTF-8
    pub file: PathBuf,

    /// The file holds token ids instead, separated by spaces, commas or lines
    #[arg(long)]
    pub ids: bool,

    /// Print JSON: {"logprobs": [...], "perplexity"}
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

#[derive(Serialize)]
struct Perplexity {
    /// Of token i + 1 given tokens 0..=i.
    logprobs: Vec<f64>,
    perplexity: f64,
}

/// Prints the table or the JSON.
///
/// # Errors
/// A model that cannot be used, ids outside of its vocabulary, a text of fewer than two tokens or more than the context.
pub fn run(args: &Args) -> Result<()> {
    let backend = args.device.open()?;
    let text = read_text(&args.file)?;
    let (llama, tokenizer) = load(&backend, &hub::llm(&args.llm)?, !args.ids)?;
    let ids = match &tokenizer {
        Some(tokenizer) if !args.ids => {
            let text = text.strip_suffix('\n').map_or(&*text, |text| text.strip_suffix('\r').unwrap_or(text));
            tokenizer.encode(text, true)
        }
        _ => parse_ids(&text),
    };
    let ids = ids.and_then(|ids| fitting(ids, &llama)).at(args.file.display())?;
    let result = perplexity(&backend, &llama, &ids)?;
    if args.json {
        return output::text(&output::json_line(&result)?);
    }
    let mut table = format!("{:>7}  {:>10}  token\n", "id", "logprob");
    for (i, &id) in ids.iter().enumerate() {
        let logprob = i.checked_sub(1).map_or("-".into(), |i| format!("{:.4}", result.logprobs[i]));
        let piece = tokenizer.as_ref().map_or(Ok(String::new()), |tokenizer| piece(tokenizer, id))?;
        table += format!("{id:>7}  {logprob:>10}  {piece}").trim_end();
        table.push('\n');
    }
    let tokens = counted(result.logprobs.len(), "token");
    output::text(&format!("{table}\nperplexity {:.4} over {tokens}\n", result.perplexity))
}

/// The model, and its tokenizer where it has one; with `text` it must.
fn load(backend: &Candle, path: &Path, text: bool) -> Result<(Llama<Candle>, Option<Tokenizer>)> {
    if !path.is_dir() {
        let source = FileSource::open(path)?;
        let (llama, tokenizer) = block_on(load_llama(backend, source)).at(path.display())?;
        return Ok((llama, Some(tokenizer)));
    }
    if path.join(MANIFEST).exists() {
        let (llama, tokenizer) = block_on(load_llama(backend, open_bundle(path)?.llm)).at(path.display())?;
        return Ok((llama, Some(tokenizer)));
    }
    let config = read_json(path, "config.json")?;
    let weights = HuggingFaceWeights::open(path)?;
    let llama = block_on(load_llama_weights(backend, &config, &weights)).at(path.display())?;
    // Ids need none.
    let has_tokenizer = text || path.join("tokenizer.json").exists();
    Ok((llama, has_tokenizer.then(|| open_tokenizer(path)).transpose()?))
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    words
        .map(|word| {
            word.parse().map_err(|_| Error::Config(format!("expected token ids but found `{}`", word.escape_debug())))
        })
        .collect()
}

/// Ids that the model can be asked about.
fn fitting(ids: Vec<u32>, llama: &Llama<Candle>) -> Result<Vec<u32>> {
    let (most, vocabulary) = (llama.config().max_position_embeddings, llama.config().vocab_size);
    let problem = |message: String| Err(Error::Config(message));
    if ids.len() < 2 {
        return problem(format!(
            "expected at least 2 tokens but found {}\nthe first one has nothing before it",
            ids.len()
        ));
    }
    if ids.len() > most {
        return problem(format!(
            "expected at most {most} tokens, the model's context, but found {}\ncut the text into pieces",
            ids.len()
        ));
    }
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => problem(format!("expected token ids below {vocabulary} but found {id}")),
        None => Ok(ids),
    }
}

fn perplexity(backend: &Candle, llama: &Llama<Candle>, ids: &[u32]) -> Result<Perplexity> {
    let (d, vocabulary) = (llama.config().hidden_size, llama.config().vocab_size);
    let inputs = &ids[..ids.len() - 1];
    let mut cache = KvCache::new(backend, llama.config(), 1, inputs.len())?;
    let mut logprobs = Vec::with_capacity(inputs.len());
    let bar = progress::bar(inputs.len(), "tokens");
    for chunk in inputs.chunks(CHUNK) {
        let x = backend.reshape(&llama.embed(backend, chunk)?, &[1, chunk.len(), d])?;
        let hidden = llama.forward(backend, &x, Some(&mut cache))?;
        let logits = block_on(backend.read(&llama.logits(backend, &hidden)?))?;
        for row in logits.chunks_exact(vocabulary) {
            logprobs.push(log_probability(row, ids[logprobs.len() + 1])?);
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    Ok(Perplexity { perplexity: (-mean).exp(), logprobs })
}

/// ln softmax(logits)[id].
fn log_probability(logits: &[f32], id: u32) -> Result<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let logprob = f64::from(logits[id as usize] - max) - sum.ln();
    if logprob.is_finite() {
        return Ok(logprob);
    }
    Err(Error::Backend(format!("expected finite logits but found the log-probability {logprob} of token {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities() {
        let logits = [1.0f32, 2.0, 3.0];
        let expected = 1.0 - (1f64.exp() + 2f64.exp() + 3f64.exp()).ln();
        assert!((log_probability(&logits, 0).unwrap() - expected).abs() < 1e-12);
        assert!((log_probability(&[1000.0, 1000.0], 1).unwrap() + 2f64.ln()).abs() < 1e-12);
        assert!(log_probability(&[f32::NAN, 1.0], 1).is_err());
    }

    #[test]
    fn ids_are_read_however_they_are_separated() {
        assert_eq!(parse_ids("1 2,3\n4, 5\t\n").unwrap(), [1, 2, 3, 4, 5]);
        for wrong in ["1 x", "-1", "1.5", "99999999999"] {
            assert!(parse_ids(wrong).unwrap_err().to_string().starts_with("expected token ids but found"), "{wrong}");
        }
    }
}

//! `rscapret tokenize`: text to ids, by any model's tokenizer.

use std::path::{Path, PathBuf};

use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    bundle::MANIFEST,
    tokenizer::Tokenizer,
    weights::gguf::{GgufFile, MAGIC},
};
use serde_json::json;

use super::output::{self, counted, printable};
use crate::files::{FileSource, beginning, read_manifest, read_whole};

/// Most bytes of a tokenizer.json: the largest in use have some 30 million.
const MAX_TOKENIZER: u64 = 256 << 20;
/// Most bytes of a file of text.
pub(super) const MAX_TEXT: u64 = 1 << 30;

/// Show the token ids of a text, as the model's own tokenizer makes them
///
/// Text is data: what looks like a special token in it (such as </s>) is spelled out, not obeyed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret tokenize models/demo/llm.gguf \"a river runs through the forest\"
  rscapret tokenize models/demo \"many boats\" --no-special --json
  rscapret tokenize tokenizer.json --lines captions.txt --json")]
pub struct Args {
    /// A GGUF, a bundle's folder, a tokenizer.json or a Hugging Face folder that has one
    pub model: PathBuf,

    /// The text
    #[arg(required_unless_present = "lines", conflicts_with = "lines")]
    pub text: Option<String>,

    /// Tokenize every line of this file instead (UTF-8; a line's end is not part of it)
    #[arg(long, value_name = "FILE")]
    pub lines: Option<PathBuf>,

    /// Leave out the tokens that begin and end a text (BOS, EOS)
    #[arg(long)]
    pub no_special: bool,

    /// Print JSON: {"ids": [...]}; with --lines one such object a line
    #[arg(long)]
    pub json: bool,
}

/// Prints the ids.
///
/// # Errors
/// When the model has no tokenizer that can be read, or the file of lines cannot.
pub fn run(args: &Args) -> Result<()> {
    let tokenizer = open_tokenizer(&args.model)?;
    let encode = |text: &str| tokenizer.encode(text, !args.no_special);
    let as_json = |ids: &[u32]| output::json_line(&json!({ "ids": ids }));
    match (&args.lines, &args.text) {
        (Some(file), _) => {
            let mut out = String::new();
            for line in read_text(file)?.lines() {
                let ids = encode(line)?;
                out += &if args.json { as_json(&ids)? } else { spaced(&ids) };
                out.push('\n');
            }
            output::text(&out)
        }
        (None, text) => {
            let ids = encode(text.as_deref().unwrap_or_default())?;
            output::text(&if args.json { as_json(&ids)? } else { table(&tokenizer, &ids)? })
        }
    }
}

/// The tokenizer of a GGUF, a bundle, a `tokenizer.json` or a folder that has one.
///
/// # Errors
/// With the path: when it is none of these or its vocabulary cannot be used.
pub fn open_tokenizer(model: &Path) -> Result<Tokenizer> {
    if model.is_dir() {
        if model.join(MANIFEST).exists() {
            // The digest is not checked: hashing gigabytes of weights would not make the vocabulary any better.
            let (manifest, _) = read_manifest(model)?;
            return open_tokenizer(&model.join(manifest.files.llm.path));
        }
        let inside = model.join("tokenizer.json");
        if !inside.exists() {
            return Err(Error::Io(format!("expected {MANIFEST} or tokenizer.json but found neither")))
                .at(model.display());
        }
        return Tokenizer::from_json(&read_whole(&inside, MAX_TOKENIZER)?).at(inside.display());
    }
    let gguf = model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let source = FileSource::open(model)?;
    if gguf || source.begins_with(&MAGIC)? {
        let open = || Tokenizer::from_gguf(block_on(GgufFile::open(source))?.metadata());
        return open().at(model.display());
    }
    let bytes = read_whole(model, MAX_TOKENIZER)?;
    if !matches!(bytes.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{')) {
        return Err(Error::Malformed(format!(
            "expected a GGUF, a tokenizer.json or a bundle's folder but found {}",
            beginning(&bytes)
        )))
        .at(model.display());
    }
    Tokenizer::from_json(&bytes).at(model.display())
}

/// A file of text.
pub(super) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_whole(path, MAX_TEXT)?)
        .map_err(|error| Error::Malformed(format!("expected text in UTF-8 but found {}", error.utf8_error())))
        .at(path.display())
}

fn spaced(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// What a token stands for, in quotes; bytes that are no whole character are spelled out.
pub(super) fn piece(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    let shown: String = tokenizer
        .token_bytes(id)?
        .utf8_chunks()
        .map(|chunk| {
            let broken: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            printable(chunk.valid()) + &broken
        })
        .collect();
    Ok(if tokenizer.is_control(id) { shown } else { format!("\"{shown}\"") })
}

fn table(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let mut text = counted(ids.len(), "token") + "\n";
    for &id in ids {
        text += &format!("{id:>7}  {}\n", piece(tokenizer, id)?);
    }
    Ok(text)
}

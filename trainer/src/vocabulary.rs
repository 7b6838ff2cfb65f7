//! A byte-level BPE vocabulary of one's own, from caption text.

use std::path::Path;

use rscapret::{Context, Error, Result, tokenizer::Tokenizer};
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{files::unreadable, run_dir::write_whole};

/// Begin of text; id 0.
pub const BOS: &str = "<s>";
/// End of text; id 1.
pub const EOS: &str = "</s>";

/// Reads `path`, or trains a vocabulary of `size` on `texts` and writes it there.
///
/// # Errors
/// A file that is no such vocabulary, or one of another size.
pub fn open_or_train(path: &Path, size: usize, texts: &[String]) -> Result<Tokenizer> {
    if !path.exists() {
        write_whole(path, train(size, texts)?.as_bytes())?;
    }
    let bytes = std::fs::read(path).map_err(unreadable).at(path.display())?;
    let tokenizer = Tokenizer::from_json(&bytes).at(path.display())?;
    if tokenizer.vocab_size() != size {
        return Err(Error::Config(format!(
            "{}: expected a vocabulary of {size} but found {}\nset vocab_size to that, or remove the file to train a new one",
            path.display(),
            tokenizer.vocab_size()
        )));
    }
    Ok(tokenizer)
}

/// `tokenizer.json` of a byte-level BPE with GPT-2's pre-tokenizer; the same texts, the same bytes.
fn train(size: usize, texts: &[String]) -> Result<String> {
    let failed = |e: tokenizers::Error| Error::Config(format!("expected to make a vocabulary but found: {e}"));
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(failed)?;
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .special_tokens(vec![AddedToken::from(BOS, true), AddedToken::from(EOS, true)])
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;
    tokenizer.to_string(false).map_err(failed)
}

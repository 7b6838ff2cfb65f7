//! CLIP's tokenizer (Radford et al., 2021): lower case, white space made one, byte-level BPE whose words end in `</w>`.

use tokenizers::{
    NormalizedString, NormalizerWrapper, PreTokenizerWrapper,
    normalizers::{
        Lowercase, NFC, Sequence as Normalizers,
        replace::{Replace, ReplacePattern},
    },
    pre_tokenizers::{byte_level::ByteLevel, sequence::Sequence as PreTokenizers},
};

use super::{
    byte_level::{bpe, char_of, cut},
    foreign, json,
};
use crate::error::{Error, Result};

/// Tokens that the text tower sees, begin and end included.
pub const CLIP_CONTEXT: usize = 77;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
/// What a word is; all else is white space and dropped.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Merges of the published file that CLIP uses: its vocabulary less two alphabets of 256 and the two specials.
const MERGES: usize = 49_408 - 2 * 256 - 2;

/// CLIP's tokenizer. Special tokens that are spelled in a text are text.
pub struct ClipTokenizer {
    inner: tokenizers::Tokenizer,
    /// Whether [`plain`] goes first.
    plain: bool,
    start: u32,
    end: u32,
}

impl ClipTokenizer {
    /// From the text of OpenAI's `bpe_simple_vocab_16e6.txt` (unpacked), from whose order the ids follow.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a file of other contents.
    pub fn from_merges(text: &str) -> Result<Self> {
        // The first line is a version.
        let merges: Vec<&str> = text.lines().skip(1).take(MERGES).collect();
        if merges.len() != MERGES {
            return Err(Error::Malformed(format!("expected {MERGES} merges but found {}", merges.len())));
        }
        // The alphabet stands in the order of its bytes' characters: those that print first.
        let mut alphabet: Vec<char> = (0..=255u8).map(char_of).collect();
        alphabet.sort_unstable();
        let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        tokens.extend(alphabet.iter().map(|c| format!("{c}{WORD_END}")));
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        tokens.extend([START.to_string(), END.to_string()]);
        Self::new(tokens.into_iter().zip(0u32..).collect(), merges.into_iter())
    }

    /// From Hugging Face's `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for files that do not fit each other.
    pub fn from_vocab_merges(vocab_json: &str, merges: &str) -> Result<Self> {
        let table: std::collections::HashMap<String, u32> = serde_json::from_str(vocab_json)
            .map_err(|e| Error::Malformed(format!("expected a vocab.json but found: {e}")))?;
        let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        Self::new(table.into_iter().collect(), lines)
    }

    /// From Hugging Face's `tokenizer.json`, whose normaliser is all that goes before: curly quotes stay curly.
    ///
    /// # Errors
    /// [`Error::Malformed`], or [`Error::Unsupported`] for other models than BPE.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let json: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::Malformed(format!("expected a tokenizer.json but found: {e}")))?;
        json::check_model(&json["model"])?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(foreign)?;
        inner.set_encode_special_tokens(true);
        inner.with_padding(None).with_truncation(None).map_err(foreign)?;
        Self::with_ends(inner, false)
    }

    fn new<'a>(table: Vec<(String, u32)>, merges: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::new(bpe(table, merges, Some(WORD_END), false)?);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(foreign)?;
        inner
            .with_normalizer(Some(Normalizers::new(vec![
                NormalizerWrapper::NFC(NFC),
                NormalizerWrapper::Replace(spaces),
                NormalizerWrapper::Lowercase(Lowercase),
            ])))
            .map_err(foreign)?;
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
            PreTokenizerWrapper::Split(cut(WORDS, true)?),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        Self::with_ends(inner, true)
    }

    fn with_ends(inner: tokenizers::Tokenizer, plain: bool) -> Result<Self> {
        let id = |name| {
            let missing = || Error::Malformed(format!("expected a token `{name}` but found none"));
            inner.token_to_id(name).ok_or_else(missing)
        };
        let (start, end) = (id(START)?, id(END)?);
        Ok(Self { inner, plain, start, end })
    }

    /// Ids of a text, of any number, without begin and end.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let text = if self.plain { plain(text) } else { text.to_string() };
        Ok(self.inner.encode_fast(text, false).map_err(foreign)?.get_ids().to_vec())
    }

    /// Ids as the text tower takes them, [`CLIP_CONTEXT`] of them: begin, text, end, and ends again as padding. Of a
    /// longer text the beginning is kept, and the end.
    ///
    /// # Errors
    /// As [`ClipTokenizer::encode`].
    pub fn encode_padded(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.start];
        ids.extend(self.encode(text)?.into_iter().take(CLIP_CONTEXT - 2));
        ids.resize(CLIP_CONTEXT, self.end);
        Ok(ids)
    }

    /// Begin of text; 49406 in CLIP's vocabulary.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// End of text; 49407.
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// Straight quotes for curly ones, and usual forms for full-width characters and ligatures. Of what the reference has
/// ftfy do, this is the part that touches sound text; it does not mend wrongly decoded text, nor resolve HTML entities.
fn plain(text: &str) -> String {
    if text.is_ascii() {
        return text.to_string();
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            '\u{3000}' | '\u{ff01}'..='\u{ffef}' | '\u{fb00}'..='\u{fb06}' => {
                out.push_str(NormalizedString::from(character.to_string()).nfkc().get());
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_forms() {
        assert_eq!(plain("a tree’s “crown”"), "a tree's \"crown\"");
        assert_eq!(plain("ﬁeld　～１２"), "field ~12");
        assert_eq!(plain("naïve 日本 🛰"), "naïve 日本 🛰");
    }
}

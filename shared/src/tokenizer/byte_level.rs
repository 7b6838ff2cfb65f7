//! Byte-level BPE (Radford et al., 2019): the text is cut by regular expressions, its bytes are written in an alphabet of
//! 256 printable characters, and pairs are merged in their recorded order.

use std::collections::HashSet;

use tokenizers::{
    Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    models::bpe::BPE,
    pre_tokenizers::split::{Split, SplitPattern},
};

use super::{GgufVocab, TokenKind, foreign};
use crate::error::{Error, Result};

/// GPT-2's cuts.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Llama 3's: contractions in any case, three digits at a time, line ends kept together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: as Llama 3's but for single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) struct ByteLevel {
    cuts: Vec<Split>,
    bpe: BPE,
}

impl ByteLevel {
    pub(super) fn new(vocab: &GgufVocab) -> Result<Self> {
        let pre = vocab.pre.as_deref().unwrap_or("default");
        let patterns: &[&str] = match pre {
            "gpt-2" => &[GPT2],
            "llama-bpe" | "llama3" | "llama-v3" => &[LLAMA3],
            "qwen2" => &[QWEN2],
            "smollm" | "starcoder" => &[r"\p{N}", GPT2],
            // What llama.cpp does with files that name none.
            "default" => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            other => {
                return Err(Error::Unsupported(format!(
                    "expected `tokenizer.ggml.pre` to be `gpt-2`, `llama-bpe`, `qwen2`, `smollm`, `starcoder` or \
                     `default` but found `{other}`"
                )));
            }
        };
        let ids = (0u32..).zip(&vocab.tokens).filter(|&(id, _)| {
            // Text is data: it must not become a control token.
            !matches!(vocab.kind(id), TokenKind::Control | TokenKind::Unknown)
        });
        let table: Vec<(String, u32)> = ids.map(|(id, text)| (text.clone(), id)).collect();
        let merges = vocab.merges.as_ref().ok_or_else(|| {
            Error::Malformed("expected metadata `tokenizer.ggml.merges` but found none of that key".into())
        })?;
        Ok(Self {
            cuts: patterns.iter().map(|p| cut(p, false)).collect::<Result<_>>()?,
            // Llama 3 takes whole words first.
            bpe: bpe(table, merges.iter().map(String::as_str), None, patterns == [LLAMA3])?,
        })
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut words = PreTokenizedString::from(text);
        for cut in &self.cuts {
            cut.pre_tokenize(&mut words).map_err(foreign)?;
        }
        for (word, _, _) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            let spelled: String = word.bytes().map(char_of).collect();
            let tokens = self.bpe.tokenize(&spelled).map_err(foreign)?;
            // The model drops what it has no token for.
            if tokens.iter().map(|t| t.value.len()).sum::<usize>() != spelled.len() {
                return Err(Error::Config(format!(
                    "expected a token for every byte of `{word}` but found some without"
                )));
            }
            ids.extend(tokens.iter().map(|t| t.id));
        }
        Ok(())
    }
}

/// Matches become words of their own, and so does what is between them, unless `only_matches`.
pub(super) fn cut(pattern: &str, only_matches: bool) -> Result<Split> {
    let behaviour = if only_matches { SplitDelimiterBehavior::Removed } else { SplitDelimiterBehavior::Isolated };
    Split::new(SplitPattern::Regex(pattern.into()), behaviour, only_matches).map_err(foreign)
}

/// A BPE model; merges are two tokens joined by a space. Checks what the tokenizers crate takes for granted (it panics on
/// merges longer than every token).
pub(super) fn bpe<'a>(
    table: Vec<(String, u32)>,
    merges: impl Iterator<Item = &'a str>,
    end_of_word: Option<&str>,
    whole_words: bool,
) -> Result<BPE> {
    let known: HashSet<&str> = table.iter().map(|(text, _)| text.as_str()).collect();
    let merges = merges
        .enumerate()
        .map(|(i, merge)| {
            let (left, right) = merge
                .split_once(' ')
                .filter(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains(' '))
                .ok_or_else(|| Error::Malformed(format!("expected merge {i} to be two tokens but found `{merge}`")))?;
            let union = [left, right].concat();
            match [left, right, &union].into_iter().find(|t| !known.contains(t)) {
                Some(t) => Err(Error::Malformed(format!("expected the tokens of merge {i} (`{merge}`) but not `{t}`"))),
                None => Ok((left.to_string(), right.to_string())),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let vocab: tokenizers::models::bpe::Vocab = table.into_iter().collect();
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges);
    if let Some(suffix) = end_of_word {
        builder = builder.end_of_word_suffix(suffix.into());
    }
    builder.ignore_merges(whole_words).build().map_err(foreign)
}

/// Character of a byte: itself where it prints, else the next free one from U+0100.
pub(super) fn char_of(byte: u8) -> char {
    let moved = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x21 + 0x22,
    };
    char::from_u32(0x100 + moved).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Byte of a character of the alphabet.
fn byte_of(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// What a token stands for in the text. Added tokens are spelled plainly.
pub(super) fn bytes_of(text: &str, kind: TokenKind) -> Vec<u8> {
    match kind {
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => {
            text.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.into())
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_the_reference_one() {
        let reference = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let ours: HashSet<char> = (0..=255).map(char_of).collect();
        assert_eq!(ours.len(), 256);
        assert!(reference.iter().all(|c| ours.contains(c)) && reference.len() == 256);
        assert!((0..=255).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        assert_eq!([char_of(b' '), char_of(b'\n'), char_of(0xad)], ['Ġ', 'Ċ', 'Ń']);
    }

    #[test]
    fn merges_that_lie_are_refused() {
        let table = || vec![("a".to_string(), 0), ("b".to_string(), 1)];
        for merge in ["a b", "a", "a  b", " a", "a c", ""] {
            assert!(matches!(bpe(table(), [merge].into_iter(), None, false), Err(Error::Malformed(_))), "{merge}");
        }
    }
}

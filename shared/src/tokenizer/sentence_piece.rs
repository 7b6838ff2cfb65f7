//! SentencePiece's BPE (Kudo and Richardson, 2018) as llama.cpp runs it: of all neighbours whose union is a token, the one
//! with the highest score is joined first, the leftmost of equals; characters without a token fall back to bytes.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
};

use super::{GgufVocab, TokenKind};
use crate::error::{Error, Result};

/// Stands for a space inside tokens.
const SPACE: &str = "\u{2581}";

pub(super) struct SentencePiece {
    /// Tokens that text can become.
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
}

/// A run of the text; empty once its left neighbour took it in.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

struct Join {
    score: f32,
    left: usize,
    right: usize,
    /// Length of the union: other than now means that one of the two has changed since.
    len: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Join {}

impl SentencePiece {
    pub(super) fn new(vocab: &GgufVocab) -> Result<Self> {
        let scores = vocab.scores.clone().ok_or_else(|| {
            Error::Malformed("expected metadata `tokenizer.ggml.scores` but found none of that key".into())
        })?;
        let mut ids = HashMap::with_capacity(vocab.tokens.len());
        let mut bytes = [None; 256];
        for (id, text) in (0u32..).zip(&vocab.tokens) {
            match vocab.kind(id) {
                TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused => {
                    ids.insert(text.clone(), id);
                }
                TokenKind::Byte => {
                    let byte = byte_of(text).ok_or_else(|| {
                        Error::Malformed(format!("expected a byte token like `<0x0A>` but found `{text}`"))
                    })?;
                    bytes[usize::from(byte)] = Some(id);
                }
                TokenKind::Control | TokenKind::Unknown => {}
            }
        }
        Ok(Self { ids, scores, bytes, unk: vocab.unk })
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, text: &str, space_prefix: bool, ids: &mut Vec<u32>) -> Result<()> {
        let text = format!("{}{}", if space_prefix { SPACE } else { "" }, text.replace(' ', SPACE));
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let mut symbols: Vec<Symbol> = (0..starts.len())
            .map(|i| Symbol {
                start: starts[i],
                end: starts.get(i + 1).copied().unwrap_or(text.len()),
                prev: i.checked_sub(1),
                next: (i + 1 < starts.len()).then_some(i + 1),
            })
            .collect();
        let mut joins: BinaryHeap<Join> =
            (1..symbols.len()).filter_map(|right| self.join(&text, &symbols, right - 1, right)).collect();
        while let Some(Join { left, right, len, .. }) = joins.pop() {
            let (l, r) = (&symbols[left], &symbols[right]);
            if l.start == l.end || r.start == r.end || r.end - l.start != len {
                continue;
            }
            let (end, next, prev) = (r.end, r.next, l.prev);
            (symbols[left].end, symbols[left].next) = (end, next);
            symbols[right].start = end;
            if let Some(next) = next {
                symbols[next].prev = Some(left);
                joins.extend(self.join(&text, &symbols, left, next));
            }
            if let Some(prev) = prev {
                joins.extend(self.join(&text, &symbols, prev, left));
            }
        }
        for symbol in symbols.iter().filter(|s| s.start < s.end) {
            self.push(&text[symbol.start..symbol.end], ids)?;
        }
        Ok(())
    }

    fn join(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Join> {
        let (start, end) = (symbols[left].start, symbols[right].end);
        let id = *self.ids.get(&text[start..end])?;
        Some(Join { score: self.scores[id as usize], left, right, len: end - start })
    }

    fn push(&self, run: &str, ids: &mut Vec<u32>) -> Result<()> {
        if let Some(&id) = self.ids.get(run) {
            ids.push(id);
        } else if let Some(bytes) = run.bytes().map(|b| self.bytes[usize::from(b)]).collect::<Option<Vec<_>>>() {
            ids.extend(bytes);
        } else if let Some(unk) = self.unk {
            ids.push(unk);
        } else {
            return Err(Error::Config(format!("expected a token for `{run}` but found neither bytes nor unknown")));
        }
        Ok(())
    }
}

/// `<0x0A>` to 10.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// What a token stands for in the text.
pub(super) fn bytes_of(text: &str, kind: TokenKind) -> Vec<u8> {
    match kind {
        TokenKind::Byte => byte_of(text).map_or_else(|| text.into(), |byte| vec![byte]),
        TokenKind::Control | TokenKind::Unknown => text.into(),
        _ => text.replace(SPACE, " ").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    /// Scores say in which order neighbours join.
    fn tokenizer(tokens: &[(&str, f32, i32)]) -> Tokenizer {
        Tokenizer::from_vocab(GgufVocab {
            model: "llama".into(),
            tokens: tokens.iter().map(|t| t.0.into()).collect(),
            scores: Some(tokens.iter().map(|t| t.1).collect()),
            token_types: Some(tokens.iter().map(|t| t.2).collect()),
            unk: Some(0),
            add_bos: Some(false),
            add_space_prefix: Some(false),
            ..GgufVocab::default()
        })
        .unwrap()
    }

    #[test]
    fn best_score_then_leftmost() {
        let t = tokenizer(&[("?", 0., 2), ("a", 0., 1), ("b", 0., 1), ("ab", -1., 1), ("ba", -1., 1), ("aba", -2., 1)]);
        assert_eq!(t.encode("aba", false).unwrap(), [5]);
        // Leftmost of equals: (ba)(ba), not b(ab)a.
        assert_eq!(t.encode("baba", false).unwrap(), [4, 4]);
        let t = tokenizer(&[("?", 0., 2), ("a", 0., 1), ("b", 0., 1), ("ab", -1., 1), ("ba", -0.5, 1)]);
        assert_eq!(t.encode("aba", false).unwrap(), [1, 4]);
    }

    #[test]
    fn control_tokens_in_a_text_are_text() {
        let t = tokenizer(&[("<s>", 9., 3), ("<", 0., 1), ("s", 0., 1), (">", 0., 1), ("<s", 1., 1)]);
        assert_eq!(t.encode("<s>", false).unwrap(), [4, 3]);
        assert_eq!(t.encode_template("s<s>", false).unwrap(), [2, 0]);
    }

    #[test]
    fn unknown_without_bytes() {
        let t = tokenizer(&[("?", 0., 2), ("a", 0., 1), ("<0xC3>", 0., 6), ("<0xA9>", 0., 6)]);
        assert_eq!(t.encode("aéx", false).unwrap(), [1, 2, 3, 0]);
    }
}

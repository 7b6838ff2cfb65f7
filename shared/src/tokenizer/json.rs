//! Hugging Face's `tokenizer.json`, read by the tokenizers crate after the checks that it does not make itself.

use serde_json::Value;

use super::{Piece, TokenKind, byte_level, foreign, sentence_piece};
use crate::error::{Error, Result};

/// What a file holds.
pub(super) struct Read {
    pub(super) engine: JsonEngine,
    pub(super) pieces: Vec<Piece>,
    pub(super) space_prefix: bool,
    specials: Vec<(String, u32)>,
}

impl Read {
    /// Id of the first of these names that is a special token.
    pub(super) fn find(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.specials.iter().find(|s| s.0 == *name)).map(|s| s.1)
    }
}

/// The tokenizers crate's pipeline, which spells special tokens out.
pub(super) struct JsonEngine(tokenizers::Tokenizer);

impl JsonEngine {
    pub(super) fn encode(&self, text: &str, add_special: bool, parse: bool) -> Result<Vec<u32>> {
        let encoding = if parse {
            // The switch is part of the tokenizer, so a copy is turned: templates are rare and short.
            let mut parsing = self.0.clone();
            parsing.set_encode_special_tokens(false);
            parsing.encode_fast(text, add_special)
        } else {
            self.0.encode_fast(text, add_special)
        };
        Ok(encoding.map_err(foreign)?.get_ids().to_vec())
    }
}

/// # Errors
/// [`Error::Malformed`], or [`Error::Unsupported`] for other models than BPE.
pub(super) fn read(bytes: &[u8]) -> Result<Read> {
    let json: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::Malformed(format!("expected a tokenizer.json but found: {e}")))?;
    let table = check_model(&json["model"])?;
    let added: Vec<(String, u32, bool)> = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|token| {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            match (token["content"].as_str(), id) {
                (Some(text), Some(id)) => Ok((text.to_string(), id, token["special"].as_bool().unwrap_or(false))),
                _ => Err(Error::Malformed("expected an added token to have a `content` and an `id`".into())),
            }
        })
        .collect::<Result<_>>()?;
    let sentence_piece = mentions(&json["decoder"], "ByteFallback") || mentions(&json["decoder"], "Metaspace");
    let byte_level = mentions(&json["decoder"], "ByteLevel");
    if sentence_piece == byte_level {
        return Err(Error::Unsupported(
            "expected a `decoder` of SentencePiece (`ByteFallback`, `Metaspace`) or of byte-level BPE (`ByteLevel`)"
                .into(),
        ));
    }
    let pieces = pieces(&table, &added, sentence_piece)?;
    let mut engine = tokenizers::Tokenizer::from_bytes(bytes).map_err(foreign)?;
    engine.set_encode_special_tokens(true);
    engine.with_padding(None).with_truncation(None).map_err(foreign)?;
    Ok(Read {
        engine: JsonEngine(engine),
        pieces,
        space_prefix: sentence_piece,
        specials: added.into_iter().filter(|a| a.2).map(|a| (a.0, a.1)).collect(),
    })
}

/// Gives the vocabulary of a model that the tokenizers crate can be trusted with: it panics on merges that are longer
/// than every token.
pub(super) fn check_model(model: &Value) -> Result<Vec<(String, u32)>> {
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") {
        return Err(Error::Unsupported(format!("expected a tokenizer model `BPE` but found {}", model["type"])));
    }
    for (key, harmless) in [("dropout", Value::from(0.0)), ("continuing_subword_prefix", Value::from(""))] {
        if !model[key].is_null() && model[key] != harmless {
            return Err(Error::Unsupported(format!("expected no `{key}` but found {}", model[key])));
        }
    }
    let vocab = model["vocab"].as_object().ok_or_else(|| Error::Malformed("expected a `vocab` object".into()))?;
    let table = vocab
        .iter()
        .map(|(text, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok((text.clone(), id)),
            None => Err(Error::Malformed(format!("expected `{text}` to have an id but found {id}"))),
        })
        .collect::<Result<Vec<_>>>()?;
    let merges = model["merges"].as_array().ok_or_else(|| Error::Malformed("expected a list of `merges`".into()))?;
    for (i, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(both) => both.split_once(' '),
            Value::Array(both) => match both.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let Some((left, right)) = pair else {
            return Err(Error::Malformed(format!("expected merge {i} to be two tokens but found {merge}")));
        };
        if !vocab.contains_key(left) || !vocab.contains_key(right) || !vocab.contains_key(&[left, right].concat()) {
            return Err(Error::Malformed(format!("expected the tokens of merge {i} ({merge}) in the vocabulary")));
        }
    }
    Ok(table)
}

/// Bytes of each id; ids without a token stand for nothing.
fn pieces(table: &[(String, u32)], added: &[(String, u32, bool)], sentence_piece: bool) -> Result<Vec<Piece>> {
    let count = table.len() + added.len();
    let highest = table.iter().map(|t| t.1).chain(added.iter().map(|a| a.1)).max();
    let Some(highest) = highest.map(|id| id as usize).filter(|&id| id < 2 * count + 1024) else {
        return Err(Error::Malformed(format!("expected ids near 0..{count} but found {highest:?} the highest")));
    };
    let mut pieces: Vec<Piece> = (0..=highest).map(|_| Piece { bytes: Vec::new(), control: false }).collect();
    for (text, id) in table {
        let byte = sentence_piece && sentence_piece::byte_of(text).is_some();
        let kind = if byte { TokenKind::Byte } else { TokenKind::Normal };
        pieces[*id as usize].bytes = match sentence_piece {
            true => sentence_piece::bytes_of(text, kind),
            false => byte_level::bytes_of(text, kind),
        };
    }
    for (text, id, special) in added {
        pieces[*id as usize] = Piece { bytes: text.clone().into_bytes(), control: *special };
    }
    Ok(pieces)
}

/// Whether a component, or one of a sequence of them, is of this type.
fn mentions(component: &Value, kind: &str) -> bool {
    component["type"].as_str() == Some(kind)
        || component["decoders"].as_array().is_some_and(|parts| parts.iter().any(|part| mentions(part, kind)))
}

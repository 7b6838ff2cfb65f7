//! The tokenizer's part of a GGUF file.

use crate::{
    error::{Error, Result},
    weights::gguf::{Metadata, MetadataArray},
};

/// What a token is (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Begin and end of text and their like: no text.
    Control,
    /// Text that is taken whole wherever it stands.
    UserDefined,
    /// In the table, but never used.
    Unused,
    /// One byte, spelled `<0xNN>`.
    Byte,
}

/// What a GGUF file says of its tokenizer; fields are the keys under `tokenizer.ggml.`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `llama` (SentencePiece) or `gpt2` (byte-level BPE).
    pub model: String,
    /// Spelling of each id.
    pub tokens: Vec<String>,
    /// Score of each id: the higher, the earlier it is merged. SentencePiece needs them.
    pub scores: Option<Vec<f32>>,
    /// Kind of each id, as numbered in the file.
    pub token_types: Option<Vec<i32>>,
    /// Pairs in order of merging, joined by a space. Byte-level BPE needs them.
    pub merges: Option<Vec<String>>,
    /// Name of the pre-tokenizer of byte-level BPE.
    pub pre: Option<String>,
    /// Begin of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// What stands for text without a token.
    pub unk: Option<u32>,
    /// Whether the model wants a begin of text; by default SentencePiece's and Llama 3's do.
    pub add_bos: Option<bool>,
    /// Whether the model wants an end of text; by default not.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before the text; by default it does.
    pub add_space_prefix: Option<bool>,
}

impl GgufVocab {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a key that is missing or of another type.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| -> Result<Option<Vec<String>>> {
            match metadata.find::<&MetadataArray>(&key(name))? {
                None => Ok(None),
                Some(MetadataArray::String(values)) => Ok(Some(values.clone())),
                Some(other) => Err(wrong_elements(&key(name), "strings", other)),
            }
        };
        let model: String = metadata.get::<&str>(&key("model"))?.into();
        // The ids that SentencePiece's trainer gives, and that writers leave out.
        let usual = |id: u32| (model == "llama").then_some(id);
        Ok(Self {
            tokens: strings("tokens")?.ok_or_else(|| {
                Error::Malformed("expected metadata `tokenizer.ggml.tokens` but found none of that key".into())
            })?,
            scores: match metadata.find::<&MetadataArray>(&key("scores"))? {
                None => None,
                Some(MetadataArray::F32(values)) => Some(values.clone()),
                Some(other) => return Err(wrong_elements(&key("scores"), "f32", other)),
            },
            token_types: match metadata.find::<&MetadataArray>(&key("token_type"))? {
                None => None,
                Some(MetadataArray::I32(values)) => Some(values.clone()),
                Some(other) => return Err(wrong_elements(&key("token_type"), "i32", other)),
            },
            merges: strings("merges")?,
            pre: metadata.find::<&str>(&key("pre"))?.map(Into::into),
            bos: metadata.find(&key("bos_token_id"))?.or(usual(1)),
            eos: metadata.find(&key("eos_token_id"))?.or(usual(2)),
            unk: metadata.find(&key("unknown_token_id"))?.or(usual(0)),
            add_bos: metadata.find(&key("add_bos_token"))?,
            add_eos: metadata.find(&key("add_eos_token"))?,
            add_space_prefix: metadata.find(&key("add_space_prefix"))?,
            model,
        })
    }

    /// # Errors
    /// [`Error::Unsupported`] for another model, [`Error::Malformed`] for tables of different lengths, scores that are
    /// no numbers, kinds that do not exist and ids beyond the table.
    pub(super) fn check(&self) -> Result<()> {
        if !matches!(self.model.as_str(), "llama" | "gpt2") {
            return Err(Error::Unsupported(format!(
                "expected `tokenizer.ggml.model` to be `llama` or `gpt2` but found `{}`",
                self.model
            )));
        }
        let n = self.tokens.len();
        if n == 0 || u32::try_from(n).is_err() {
            return Err(Error::Malformed(format!("expected a vocabulary of 1 to {} tokens but found {n}", u32::MAX)));
        }
        let lengths =
            [("scores", self.scores.as_ref().map(Vec::len)), ("token_type", self.token_types.as_ref().map(Vec::len))];
        for (name, len) in lengths {
            if let Some(len) = len.filter(|&len| len != n) {
                return Err(Error::Malformed(format!("expected {n} `tokenizer.ggml.{name}` but found {len}")));
            }
        }
        if let Some(at) = self.scores.iter().flatten().position(|s| s.is_nan()) {
            return Err(Error::Malformed(format!("expected scores to be numbers but found NaN at token {at}")));
        }
        if let Some(kind) = self.token_types.iter().flatten().find(|k| !(0..=6).contains(*k)) {
            return Err(Error::Malformed(format!("expected token types in 0..=6 but found {kind}")));
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk)] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return Err(Error::Malformed(format!("expected `{name}_token_id` below {n} but found {id}")));
            }
        }
        for (name, add, id) in [("bos", self.adds_bos(), self.bos), ("eos", self.add_eos == Some(true), self.eos)] {
            if add && id.is_none() {
                return Err(Error::Malformed(format!("expected `{name}_token_id`, which texts take, but found none")));
            }
        }
        Ok(())
    }

    pub(super) fn is_sentence_piece(&self) -> bool {
        self.model == "llama"
    }

    pub(super) fn adds_bos(&self) -> bool {
        let llama3 = || matches!(self.pre.as_deref(), Some("llama-bpe" | "llama3" | "llama-v3"));
        self.add_bos.unwrap_or_else(|| self.is_sentence_piece() || llama3())
    }

    /// Kind of an id; without a table all are text.
    pub fn kind(&self, id: u32) -> TokenKind {
        match self.token_types.as_ref().and_then(|kinds| kinds.get(id as usize)) {
            Some(2) => TokenKind::Unknown,
            Some(3) => TokenKind::Control,
            Some(4) => TokenKind::UserDefined,
            Some(5) => TokenKind::Unused,
            Some(6) => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }
}

fn wrong_elements(key: &str, wanted: &str, found: &MetadataArray) -> Error {
    Error::Malformed(format!("expected `{key}` to hold {wanted} but found {}", found.element_type().label()))
}

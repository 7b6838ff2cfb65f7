//! Text to ids and back.
//!
//! [`Tokenizer`] is the language model's, read from its GGUF file or from a `tokenizer.json`; [`ClipTokenizer`] is that
//! of CLIP's text tower. Text is data: what looks like a special token in it is spelled out, unless asked otherwise.

mod byte_level;
mod clip;
mod json;
mod sentence_piece;
mod special;
mod vocab;

pub use clip::{CLIP_CONTEXT, ClipTokenizer};
pub use vocab::{GgufVocab, TokenKind};

use crate::{
    error::{Error, Result},
    weights::gguf::Metadata,
};
use byte_level::ByteLevel;
use json::JsonEngine;
use sentence_piece::SentencePiece;
use special::{Fragment, Specials};

/// A language model's tokenizer. Immutable; ids are rows of the embedding table.
pub struct Tokenizer {
    engine: Engine,
    /// By id.
    pieces: Vec<Piece>,
    /// Parsed in every text.
    user_defined: Specials,
    /// Parsed when asked.
    all_special: Specials,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Text is encoded with a space before it, which decoding takes away again.
    space_prefix: bool,
}

enum Engine {
    SentencePiece(Box<SentencePiece>),
    ByteLevel(Box<ByteLevel>),
    Json(Box<JsonEngine>),
}

/// What one id stands for.
struct Piece {
    bytes: Vec<u8>,
    control: bool,
}

impl Tokenizer {
    /// From the metadata of a GGUF file (`tokenizer.ggml.*`).
    ///
    /// # Errors
    /// [`Error::Malformed`] for a vocabulary that contradicts itself, [`Error::Unsupported`] for a kind of tokenizer or
    /// of pre-tokenizer that this library does not do.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        Self::from_vocab(GgufVocab::from_metadata(metadata)?)
    }

    /// From the parts that a GGUF file holds.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn from_vocab(vocab: GgufVocab) -> Result<Self> {
        vocab.check()?;
        let specials = |wanted: fn(TokenKind) -> bool| {
            let ids = (0u32..).zip(&vocab.tokens).filter(|&(id, _)| wanted(vocab.kind(id)));
            Specials::new(ids.map(|(id, text)| (text.clone(), id)).collect())
        };
        let user_defined = specials(|kind| kind == TokenKind::UserDefined);
        let all_special =
            specials(|kind| matches!(kind, TokenKind::UserDefined | TokenKind::Control | TokenKind::Unknown));
        let sentence_piece = vocab.is_sentence_piece();
        let pieces = (0u32..)
            .zip(&vocab.tokens)
            .map(|(id, text)| Piece {
                bytes: if sentence_piece {
                    sentence_piece::bytes_of(text, vocab.kind(id))
                } else {
                    byte_level::bytes_of(text, vocab.kind(id))
                },
                control: matches!(vocab.kind(id), TokenKind::Control | TokenKind::Unknown | TokenKind::Unused),
            })
            .collect();
        let engine = if sentence_piece {
            Engine::SentencePiece(Box::new(SentencePiece::new(&vocab)?))
        } else {
            Engine::ByteLevel(Box::new(ByteLevel::new(&vocab)?))
        };
        Ok(Self {
            engine,
            pieces,
            user_defined,
            all_special,
            bos: vocab.bos,
            eos: vocab.eos,
            add_bos: vocab.adds_bos(),
            add_eos: vocab.add_eos.unwrap_or(false),
            space_prefix: sentence_piece && vocab.add_space_prefix.unwrap_or(true),
        })
    }

    /// From a Hugging Face `tokenizer.json` with a BPE model. Begin and end of text are the special tokens of the usual
    /// names (`<s>`, `<|begin_of_text|>`, `</s>`, `<|end_of_text|>`, `<|endoftext|>`); [`Tokenizer::with_ends`] says
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Unsupported`], likewise.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let read = json::read(bytes)?;
        Ok(Self {
            bos: read.find(&["<s>", "<|begin_of_text|>", "<|endoftext|>"]),
            eos: read.find(&["</s>", "<|end_of_text|>", "<|endoftext|>"]),
            space_prefix: read.space_prefix,
            pieces: read.pieces,
            engine: Engine::Json(Box::new(read.engine)),
            user_defined: Specials::default(),
            all_special: Specials::default(),
            // The file's post-processor does it.
            add_bos: false,
            add_eos: false,
        })
    }

    /// The same with other ids for begin and end of text.
    ///
    /// # Errors
    /// [`Error::Config`] for ids beyond the vocabulary.
    pub fn with_ends(mut self, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        for id in [bos, eos].into_iter().flatten() {
            self.piece(id)?;
        }
        (self.bos, self.eos) = (bos, eos);
        Ok(self)
    }

    /// Text to ids. `add_special` puts begin (and end) of text where the model wants them. Special tokens that are
    /// spelled in the text are spelled in the ids.
    ///
    /// # Errors
    /// [`Error::Config`] where the vocabulary has no token for some byte of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_text(text, add_special, false)
    }

    /// As [`Tokenizer::encode`], but special tokens that are spelled in the text become their ids: for prompt templates
    /// and never for what a user typed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_template(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_text(text, add_special, true)
    }

    fn encode_text(&self, text: &str, add_special: bool, parse: bool) -> Result<Vec<u32>> {
        if let Engine::Json(engine) = &self.engine {
            return engine.encode(text, add_special, parse);
        }
        let mut ids = Vec::new();
        if add_special && self.add_bos {
            ids.extend(self.bos);
        }
        let specials = if parse { &self.all_special } else { &self.user_defined };
        let mut after_special = true;
        for fragment in specials.split(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => match &self.engine {
                    Engine::SentencePiece(engine) => {
                        engine.encode(text, self.space_prefix && after_special, &mut ids)?;
                    }
                    Engine::ByteLevel(engine) => engine.encode(text, &mut ids)?,
                    Engine::Json(_) => {}
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if add_special && self.add_eos {
            ids.extend(self.eos);
        }
        Ok(ids)
    }

    /// Ids to text; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves control tokens out.
    ///
    /// # Errors
    /// [`Error::Config`] for an id beyond the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            let piece = self.piece(id)?;
            if !(skip_special && piece.control) {
                bytes.extend_from_slice(&piece.bytes);
            }
        }
        let text = if self.space_prefix { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The bytes that one id stands for, which may be part of a character. A control token's are its name.
    ///
    /// # Errors
    /// [`Error::Config`] for an id beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        Ok(&self.piece(id)?.bytes)
    }

    /// Whether an id is a control token (or the unknown one, or one that the file marks unused), which is no text. Ids
    /// beyond the vocabulary are not.
    pub fn is_control(&self, id: u32) -> bool {
        self.pieces.get(id as usize).is_some_and(|p| p.control)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Begin of text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether decoded text begins with a space that was not in the text that was encoded.
    pub fn space_prefix(&self) -> bool {
        self.space_prefix
    }

    fn piece(&self, id: u32) -> Result<&Piece> {
        self.pieces
            .get(id as usize)
            .ok_or_else(|| Error::Config(format!("expected a token id below {} but found {id}", self.pieces.len())))
    }
}

/// The tokenizers crate's errors are text.
fn foreign(error: impl std::fmt::Display) -> Error {
    Error::Malformed(format!("expected a tokenizer that works but found: {error}"))
}

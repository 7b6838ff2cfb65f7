//! Text to ids and back: see [`crate::tokenizer`].

pub use crate::tokenizer::{GgufVocab, TokenKind, Tokenizer};

//! Text of a caption while its tokens come.

use crate::{error::Result, tokenizer::Tokenizer};

/// Turns ids into pieces of text that never cut a character. The pieces together are what [`Tokenizer::decode`] makes of
/// all ids, control tokens left out.
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes that end inside a character.
    pending: Vec<u8>,
    /// Whether the space that the tokenizer put before the text is still to come.
    awaits_space: bool,
}

impl<'t> DecodeStream<'t> {
    /// At the start of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new(), awaits_space: tokenizer.space_prefix() }
    }

    /// Takes one id and gives the text that is now certain, often none.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for an id beyond the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut bytes = self.tokenizer.token_bytes(id)?;
        if self.tokenizer.is_control(id) {
            return Ok(String::new());
        }
        if self.awaits_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.awaits_space = false;
        }
        self.pending.extend_from_slice(bytes);
        Ok(self.take_certain())
    }

    /// The rest: a character that was begun and not ended becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        for chunk in self.pending.utf8_chunks() {
            let ends_here = chunk.valid().len() + chunk.invalid().len() == rest.len();
            text.push_str(chunk.valid());
            rest = &rest[chunk.valid().len()..];
            // Only at the end can more bytes make a character of it.
            if ends_here && may_continue(chunk.invalid()) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[chunk.invalid().len()..];
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

/// Whether bytes are the beginning of a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::GgufVocab;

    /// Every byte is a token, after the unknown and the control token; with and without a space prefix.
    fn bytes_only(space_prefix: bool) -> Tokenizer {
        let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into()];
        tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(["\u{2581}a".into(), "\u{2581}".into()]);
        Tokenizer::from_vocab(GgufVocab {
            model: "llama".into(),
            scores: Some(vec![0.0; tokens.len()]),
            token_types: Some((0..tokens.len()).map(|i| [2, 3, 6, 1][i.min(2) + usize::from(i >= 258)]).collect()),
            tokens,
            bos: Some(1),
            add_space_prefix: Some(space_prefix),
            ..GgufVocab::default()
        })
        .unwrap()
    }

    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = DecodeStream::new(tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish());
        pieces
    }

    fn ids(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|&b| u32::from(b) + 2).collect()
    }

    #[test]
    fn a_character_comes_whole() {
        let t = bytes_only(false);
        assert_eq!(stream(&t, &ids("é🛰".as_bytes())), ["", "é", "", "", "", "🛰", ""]);
    }

    #[test]
    fn broken_characters_are_replaced_when_certain() {
        let t = bytes_only(false);
        assert_eq!(stream(&t, &ids(b"\xc3a")), ["", "\u{fffd}a", ""]);
        assert_eq!(stream(&t, &ids(b"\xff\xf0\x9f")), ["\u{fffd}", "", "", "\u{fffd}"]);
    }

    #[test]
    fn the_prefixed_space_goes_once() {
        let t = bytes_only(true);
        assert_eq!(stream(&t, &[1, 258, 258]), ["", "a", " a", ""]);
        assert_eq!(stream(&t, &[258 - 1, 258]).concat(), "\u{fffd} a");
        assert!(DecodeStream::new(&t).push(260).is_err());
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text in any::<String>(), prefix in any::<bool>()) {
            let t = bytes_only(prefix);
            // SentencePiece's own sign for a space cannot be told from one.
            let text = text.replace('\u{2581}', "_");
            let ids = t.encode(&text, true).unwrap();
            prop_assert_eq!(stream(&t, &ids).concat(), text);
        }

        #[test]
        fn pieces_are_the_decoding(ids in prop::collection::vec(0..260u32, 0..40), prefix in any::<bool>()) {
            let t = bytes_only(prefix);
            prop_assert_eq!(stream(&t, &ids).concat(), t.decode(&ids, true).unwrap());
        }
    }
}

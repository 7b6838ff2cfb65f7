//! What inference has to do as training did: it travels in the metadata of `projections.safetensors`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

const HIDDEN_LAYER: &str = "hidden_layer";
const PROMPT: &str = "prompt";

/// How the language model is asked, beside the maps themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conventions {
    /// Which hidden state [RET] is read from, counted as transformers' `hidden_states`: n is the output of n layers, from 1
    /// on. `None`, or L, is the last one, after the final norm.
    pub hidden_layer: Option<usize>,
    /// Text between a picture's visual tokens and its caption; empty for none.
    pub prompt: String,
}

impl Conventions {
    /// As metadata; what is as usual is left out.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let layer = self.hidden_layer.map(|layer| (HIDDEN_LAYER.to_string(), layer.to_string()));
        let prompt = (!self.prompt.is_empty()).then(|| (PROMPT.to_string(), self.prompt.clone()));
        layer.into_iter().chain(prompt).collect()
    }

    /// Out of metadata, `get` giving the value of a key.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a layer that is no number from 1 on.
    pub fn from_metadata<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self> {
        let layer = |text: &str| match text.parse() {
            Ok(layer) if layer > 0 => Ok(layer),
            _ => Err(Error::Malformed(format!(
                "expected `{HIDDEN_LAYER}` to be a number from 1 on but found `{}`",
                text.escape_debug()
            ))),
        };
        Ok(Conventions {
            hidden_layer: get(HIDDEN_LAYER).map(layer).transpose()?,
            prompt: get(PROMPT).unwrap_or_default().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survive_their_own_metadata() {
        let usual = Conventions::default();
        assert!(usual.to_metadata().is_empty());
        let own = Conventions { hidden_layer: Some(3), prompt: "seen from above: ".into() };
        for conventions in [usual, own] {
            let metadata = conventions.to_metadata();
            let read = Conventions::from_metadata(|key| metadata.get(key).map(String::as_str));
            assert_eq!(read.unwrap(), conventions);
        }
        for bad in ["0", "-1", "two", "99999999999999999999999"] {
            let read = Conventions::from_metadata(|key| (key == HIDDEN_LAYER).then_some(bad));
            assert!(matches!(read, Err(Error::Malformed(_))), "{bad}");
        }
    }
}

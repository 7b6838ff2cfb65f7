//! What inference has to do as training did: it travels in the metadata of `projections.safetensors`.

use std::collections::BTreeMap;

use crate::{
    clip::ImageFeature,
    error::{Error, Result},
};

const HIDDEN_LAYER: &str = "hidden_layer";
const PROMPT: &str = "prompt";
const PATCH_GRID: &str = "patch_grid";

/// How the models are asked, beside the maps themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conventions {
    /// Which hidden state [RET] is read from, counted as transformers' `hidden_states`: n is the output of n layers, from 1
    /// on. `None`, or L, is the last one, after the final norm.
    pub hidden_layer: Option<usize>,
    /// Text between a picture's visual tokens and its caption; empty for none.
    pub prompt: String,
    /// What the maps see of a picture; in the metadata the side of a grid of patches, or nothing for the class token.
    pub image_feature: ImageFeature,
}

impl Conventions {
    /// As metadata; what is as usual is left out.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let layer = self.hidden_layer.map(|layer| (HIDDEN_LAYER.to_string(), layer.to_string()));
        let prompt = (!self.prompt.is_empty()).then(|| (PROMPT.to_string(), self.prompt.clone()));
        let grid = match self.image_feature {
            ImageFeature::Class => None,
            ImageFeature::Patches { grid } => Some((PATCH_GRID.to_string(), grid.to_string())),
        };
        layer.into_iter().chain(prompt).chain(grid).collect()
    }

    /// Out of metadata, `get` giving the value of a key.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a layer that is no number from 1 on, and a grid that is none up to
    /// [`ImageFeature::MAX_GRID`].
    pub fn from_metadata<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self> {
        let number = |key: &str, most: usize, range: &str| {
            let read = |text: &str| match text.parse() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(Error::Malformed(format!(
                    "expected `{key}` to be a number from 1 {range} but found `{}`",
                    text.escape_debug()
                ))),
            };
            get(key).map(read).transpose()
        };
        let most = ImageFeature::MAX_GRID;
        let grid = number(PATCH_GRID, most, &format!("to {most}"))?;
        Ok(Conventions {
            hidden_layer: number(HIDDEN_LAYER, usize::MAX, "on")?,
            prompt: get(PROMPT).unwrap_or_default().to_string(),
            image_feature: grid.map_or(ImageFeature::Class, |grid| ImageFeature::Patches { grid }),
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
        let own = Conventions { hidden_layer: Some(3), prompt: "seen from above: ".into(), ..Conventions::default() };
        let patches = Conventions { image_feature: ImageFeature::Patches { grid: 4 }, ..Conventions::default() };
        assert_eq!(patches.to_metadata(), BTreeMap::from([("patch_grid".to_string(), "4".to_string())]));
        for conventions in [usual, own, patches] {
            let metadata = conventions.to_metadata();
            let read = Conventions::from_metadata(|key| metadata.get(key).map(String::as_str));
            assert_eq!(read.unwrap(), conventions);
        }
        for bad in ["0", "-1", "two", "", " 4", "99999999999999999999999"] {
            for name in [HIDDEN_LAYER, PATCH_GRID] {
                let read = Conventions::from_metadata(|key| (key == name).then_some(bad));
                assert!(matches!(read, Err(Error::Malformed(_))), "{name} {bad}");
            }
        }
        let read = |grid| Conventions::from_metadata(|key| (key == PATCH_GRID).then_some(grid));
        assert_eq!(read("64").unwrap().image_feature, ImageFeature::Patches { grid: 64 });
        let error = read("65").unwrap_err().to_string();
        assert!(error.contains("expected `patch_grid` to be a number from 1 to 64 but found `65`"), "{error}");
    }
}

//! What the bridge sees of the data: features of images, ids of captions.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rscapret::{Error, Result, caption::sequence::text_ids, tokenizer::Tokenizer};

use super::Config;
use crate::{
    dataset::{Item, Split, load_listed},
    features::Features,
    stage::Workers,
};

/// An image with its captions.
pub struct Pair {
    /// Where it lies.
    pub image: PathBuf,
    /// (views C).
    pub features: Vec<f32>,
    /// At least one.
    pub captions: Vec<Caption>,
}

/// One caption of an image.
pub struct Caption {
    /// As written.
    pub text: String,
    /// [BOS text].
    pub ids: Vec<u32>,
    /// Whether the ids are the whole text.
    pub whole: bool,
    /// Which distinct string it is.
    pub string: usize,
}

impl Caption {
    /// Labels that the ids give: the ids after BOS, and end of text where nothing was cut.
    pub fn labels(&self) -> usize {
        self.ids.len() - usize::from(!self.whole)
    }
}

/// Train pairs by source with the source's share, and the first source's validation pairs.
type Splits = (Vec<(f64, Vec<Pair>)>, Vec<Pair>);

/// # Errors
/// Unusable data; a tokenizer without an end of text.
pub fn read(config: &Config, tokenizer: &Tokenizer, features: &Features, workers: &Workers) -> Result<Splits> {
    if tokenizer.eos().is_none() {
        return Err(Error::Config("tokenizer: expected an end of text but found none".into()));
    }
    let (mut train, mut val) = (Vec::new(), Vec::new());
    let mut strings = HashMap::new();
    for (i, source) in config.data.iter().enumerate() {
        let dataset = load_listed(&source.dataset)?;
        let mut read = |split: Split| -> Result<Vec<Pair>> {
            let items: Vec<&Item> = dataset.split(split).collect();
            let paths = items
                .iter()
                .map(|item| dataset.image_path(item))
                .collect::<Option<Vec<PathBuf>>>()
                .ok_or_else(|| Error::Config(format!("{}: expected `images` but found none", dataset.name)))?;
            let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let views = if split == Split::Train { source.views } else { 1 };
            let encoded = features.of(&paths, views, workers)?;
            let mut pairs = Vec::new();
            for ((item, features), path) in items.into_iter().zip(encoded).zip(&paths) {
                let mut captions = Vec::new();
                for text in &item.captions {
                    let next = strings.len();
                    let string = *strings.entry(text.clone()).or_insert(next);
                    let mut ids = text_ids(tokenizer, text)?;
                    let whole = ids.len() <= config.max_length;
                    ids.truncate(config.max_length);
                    captions.push(Caption { text: text.clone(), ids, whole, string });
                }
                pairs.push(Pair { image: path.to_path_buf(), features, captions });
            }
            Ok(pairs)
        };
        train.push((source.dataset.weight, read(Split::Train)?));
        if i == 0 {
            val = read(Split::Val)?;
        }
    }
    Ok((train, val))
}

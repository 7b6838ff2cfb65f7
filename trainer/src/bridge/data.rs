//! What the bridge sees of the data: features of images, ids of captions.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rscapret::{Error, Result, tokenizer::Tokenizer};

use super::Config;
use crate::{
    dataset::{Dataset, Item, Split},
    features::Features,
    stage::Workers,
};

/// An image with its captions.
pub struct Pair {
    /// Where it lies.
    pub image: PathBuf,
    /// (views width), as [`crate::features::Tower::width`] says.
    pub features: Vec<f32>,
    /// At least one.
    pub captions: Vec<Caption>,
}

/// One caption of an image.
pub struct Caption {
    /// As written.
    pub text: String,
    /// Of the text alone.
    pub tokens: Vec<u32>,
    /// Whether they are the whole text.
    pub whole: bool,
    /// Which distinct string it is.
    pub string: usize,
}

impl AsRef<str> for Caption {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Caption {
    /// Labels that it gives: its tokens, and end of text where nothing was cut.
    pub fn labels(&self) -> usize {
        self.tokens.len() + usize::from(self.whole)
    }

    /// [BOS text], as retrieval reads it.
    pub fn retrieval_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        tokenizer.bos().into_iter().chain(self.tokens.iter().copied()).collect()
    }
}

/// Train pairs by source with the source's share, and the first source's validation pairs.
type Splits = (Vec<(f64, Vec<Pair>)>, Vec<Pair>);

/// Encodes the datasets of the configuration's sources, which are given in their order.
///
/// # Errors
/// Datasets without images; unusable images; a tokenizer without an end of text.
pub fn read(
    config: &Config,
    datasets: &[Dataset],
    tokenizer: &Tokenizer,
    features: &Features,
    workers: &Workers,
) -> Result<Splits> {
    if tokenizer.eos().is_none() {
        return Err(Error::Config("tokenizer: expected an end of text but found none".into()));
    }
    let (mut train, mut val) = (Vec::new(), Vec::new());
    let mut strings = HashMap::new();
    for (i, (source, dataset)) in config.data.iter().zip(datasets).enumerate() {
        let mut read = |split: Split| -> Result<Vec<Pair>> {
            let items: Vec<&Item> = dataset.split(split).collect();
            let paths: Vec<PathBuf> = items.iter().map(|item| dataset.image_path(item)).collect::<Result<_>>()?;
            let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let views = if split == Split::Train { source.views } else { 1 };
            let encoded = features.of(&paths, views, workers)?;
            let mut pairs = Vec::new();
            for ((item, features), path) in items.into_iter().zip(encoded).zip(&paths) {
                let mut captions = Vec::new();
                for text in &item.captions {
                    let next = strings.len();
                    let string = *strings.entry(text.clone()).or_insert(next);
                    let mut tokens = tokenizer.encode(text, false)?;
                    let most = config.max_length.saturating_sub(usize::from(tokenizer.bos().is_some()));
                    let whole = tokens.len() <= most;
                    tokens.truncate(most);
                    captions.push(Caption { text: text.clone(), tokens, whole, string });
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

//! What the bridge sees of the data: features of images, ids of captions.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rscapret::{Result, tokenizer::Tokenizer};

use super::Config;
use crate::{
    captioning::{Caption, ends_texts},
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
    ends_texts(tokenizer)?;
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
                    captions.push(Caption::new(tokenizer, text, config.max_length, string)?);
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

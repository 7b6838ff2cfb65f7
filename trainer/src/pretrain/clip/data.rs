//! What the towers see of the data: images in memory, ids of captions.

use std::collections::HashMap;

use rayon::prelude::*;
use rscapret::{Error, Result, clip::preprocess::Picture, tokenizer::Tokenizer};

use super::{Config, captioning::Decoder};
use crate::{
    ahead::cores,
    captioning,
    dataset::{Dataset, Item, Split},
    images::read_square,
    run_dir::RunDir,
    stage::pool,
    vocabulary::{EOS, open_or_train},
};

/// An image with its captions as ids.
pub(super) struct Pair {
    pub picture: Picture,
    pub captions: Vec<Caption>,
    pub texts: Vec<String>,
    /// Which source it is from, which has classes of its own.
    pub source: usize,
    pub class: Option<u32>,
}

pub(super) struct Caption {
    /// As the text tower reads it.
    pub ids: Vec<u32>,
    /// Which distinct string it is.
    pub string: usize,
    /// As a language model is to write it, where there is one.
    pub written: Option<captioning::Caption>,
}

pub(super) struct Data {
    /// Train pairs by source, with the source's share.
    pub train: Vec<(f64, Vec<Pair>)>,
    /// Validation pairs of the first source.
    pub val: Vec<Pair>,
    /// How many classes each source has.
    pub classes: Vec<usize>,
}

/// The data, and the end of text of the text tower's tokenizer.
pub(super) fn read_data(config: &Config, run: &RunDir, decoder: Option<&Decoder>) -> Result<(Data, u32)> {
    let datasets = run.datasets(config.data.iter().map(|source| &source.dataset))?;
    let loaded: Vec<_> = config.data.iter().zip(datasets).collect();
    let texts: Vec<String> = loaded
        .iter()
        .flat_map(|(_, dataset)| dataset.split(Split::Train).flat_map(|item| item.captions.iter().cloned()))
        .collect();
    let tokenizer = open_or_train(&config.tokenizer, config.text.vocab_size, &texts)?;
    let eos = tokenizer.eos().ok_or_else(|| Error::Config(format!("tokenizer: expected `{EOS}` but found none")))?;
    let mut strings = HashMap::new();
    let mut data = Data { train: Vec::new(), val: Vec::new(), classes: Vec::new() };
    for (i, (source, dataset)) in loaded.iter().enumerate() {
        let mut classes = HashMap::new();
        let mut read = |split: Split| -> Result<Vec<Pair>> {
            let items: Vec<&Item> = dataset.split(split).collect();
            let pictures = read_pictures(&items, dataset, if split == Split::Train { config.cache_size } else { 256 })?;
            let mut pairs = Vec::new();
            for (item, picture) in items.into_iter().zip(pictures) {
                let class = source.classes.class(item).map(|class| {
                    let next = classes.len() as u32;
                    *classes.entry(class).or_insert(next)
                });
                let mut captions = Vec::new();
                for text in &item.captions {
                    let next = strings.len();
                    let string = *strings.entry(text.clone()).or_insert(next);
                    let ids = text_ids(&tokenizer, text, config.text.max_position_embeddings, eos)?;
                    let written = decoder.map(|decoder| decoder.caption(text, string)).transpose()?;
                    captions.push(Caption { ids, string, written });
                }
                pairs.push(Pair { picture, captions, texts: item.captions.clone(), source: i, class });
            }
            Ok(pairs)
        };
        data.train.push((source.dataset.weight, read(Split::Train)?));
        if i == 0 {
            data.val = read(Split::Val)?;
        }
        data.classes.push(classes.len());
    }
    Ok((data, eos))
}

fn read_pictures(items: &[&Item], dataset: &Dataset, side: usize) -> Result<Vec<Picture>> {
    let read = |item: &&Item| -> Result<Picture> { read_square(&dataset.image_path(item)?, side) };
    pool(cores())?.install(|| items.par_iter().map(read).collect())
}

/// Ids of a caption with end of text, cut to `most`.
fn text_ids(tokenizer: &Tokenizer, text: &str, most: usize, eos: u32) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, false)?;
    ids.truncate(most.saturating_sub(1));
    ids.push(eos);
    Ok(ids)
}

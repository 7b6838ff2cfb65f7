//! Datasets looked at as a whole before anything is trained: counts, refusals, and what train and test share.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use rscapret::Result;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Dataset, DatasetConfig, Split, SplitSummary, load_unlimited,
    pictures::open_pictures,
    published::{Published, published},
    summary,
};

/// What was found in all datasets of a configuration.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Each by itself, in the order of the configuration.
    pub datasets: Vec<Checked>,
    /// Test images that are, byte for byte, training images, of any of the datasets. `None` if images were not opened.
    pub shared_images: Option<Vec<SharedImage>>,
    /// Captions that stand in both train and test, of any of the datasets.
    pub shared_captions: SharedCaptions,
}

/// What was found in one dataset.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Its name.
    pub name: String,
    /// Its annotations.
    pub annotations: PathBuf,
    /// Usable images and captions by split.
    pub splits: [SplitSummary; 3],
    /// What its authors say, for the datasets that are known.
    pub published: Option<Published>,
    /// Items that the annotations list.
    pub seen: usize,
    /// Items that were left out whole.
    pub refused_items: usize,
    /// Number of refusals of each kind, those of single captions among them.
    pub refused: BTreeMap<&'static str, usize>,
    /// Every refusal, in words.
    pub refusals: Vec<String>,
    /// The configured limit of refused items, as a share.
    pub max_refused: f64,
    /// Whether more was refused, or all: no stage would take the dataset.
    pub too_many: bool,
}

/// One picture on both sides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SharedImage {
    /// `dataset: file`.
    pub test: String,
    /// Its first double among the training images.
    pub train: String,
    /// Of the bytes of both, hexadecimal.
    pub sha256: String,
}

/// Strings on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedCaptions {
    /// Different strings.
    pub distinct: usize,
    /// Test captions that are one of them.
    pub test_captions: usize,
    /// Test captions in all.
    pub of: usize,
    /// The first few, in alphabetical order.
    pub examples: Vec<String>,
}

/// SHA-256 of an image file's bytes.
type Hash = [u8; 32];

/// Checks the datasets; `images` says whether their images are opened, which takes time. `progress` is called for each.
///
/// # Errors
/// Annotations that cannot be read or are of no known layout, and a configuration with impossible values. What is wrong with
/// single items is no error but a refusal.
pub fn check(configs: &[DatasetConfig], images: bool, progress: impl Fn() + Sync) -> Result<Check> {
    let mut datasets = Vec::new();
    let mut loaded = Vec::new();
    for config in configs {
        let (mut dataset, mut refusals) = load_unlimited(config)?;
        let hash = |bytes: &[u8]| -> Hash { Sha256::digest(bytes).into() };
        let hashes = if images { open_pictures(&mut dataset, &mut refusals, hash, &progress) } else { Vec::new() };
        datasets.push(Checked {
            name: config.name.clone(),
            annotations: config.annotations.clone(),
            splits: summary(&dataset).splits,
            published: published(&config.name),
            seen: refusals.seen,
            refused_items: refusals.items(),
            refused: refusals.counts(),
            refusals: refusals.list.iter().map(ToString::to_string).collect(),
            max_refused: config.max_refused,
            too_many: refusals.share() > config.max_refused || dataset.items.is_empty(),
        });
        loaded.push((dataset, hashes));
    }
    let opened = images && configs.iter().any(|config| config.images.is_some());
    Ok(Check {
        datasets,
        shared_images: opened.then(|| shared_images(&loaded)),
        shared_captions: shared_captions(&loaded),
    })
}

fn shared_images(loaded: &[(Dataset, Vec<Hash>)]) -> Vec<SharedImage> {
    let of = |wanted: Split| {
        loaded.iter().flat_map(move |(dataset, hashes)| {
            let images = dataset.items.iter().zip(hashes).filter(move |(item, _)| item.split == wanted);
            images.map(|(item, hash)| (hash, format!("{}: {}", dataset.name, item.image.display())))
        })
    };
    let mut train: BTreeMap<&Hash, String> = BTreeMap::new();
    for (hash, name) in of(Split::Train) {
        train.entry(hash).or_insert(name);
    }
    let shared = of(Split::Test).filter_map(|(hash, test)| {
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(SharedImage { test, train: train.get(hash)?.clone(), sha256 })
    });
    shared.collect()
}

fn shared_captions(loaded: &[(Dataset, Vec<Hash>)]) -> SharedCaptions {
    let of = |split| {
        loaded
            .iter()
            .flat_map(move |(dataset, _)| dataset.split(split))
            .flat_map(|item| &item.captions)
            .map(String::as_str)
    };
    let train: HashSet<&str> = of(Split::Train).collect();
    let both: Vec<&str> = of(Split::Test).filter(|text| train.contains(text)).collect();
    let distinct: BTreeSet<&str> = both.iter().copied().collect();
    SharedCaptions {
        distinct: distinct.len(),
        test_captions: both.len(),
        of: of(Split::Test).count(),
        examples: distinct.into_iter().take(5).map(str::to_string).collect(),
    }
}

//! What a run was begun on, so that it goes on with the same.

use rscapret::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Dataset, Split};

/// A dataset's training and validation items, by counts and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The dataset's name.
    pub name: String,
    /// Images to train on.
    pub train: usize,
    /// Images to validate on.
    pub val: usize,
    /// Captions of both.
    pub captions: usize,
    /// SHA-256 of their image names and captions, hexadecimal. Where the folder of the images lies is left out.
    pub sha256: String,
}

impl Record {
    /// Of a dataset at hand.
    pub fn of(dataset: &Dataset) -> Self {
        let mut hash = Sha256::new();
        // Lengths before texts: no two lists of texts are the same bytes.
        let mut put = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        let mut captions = 0;
        for split in [Split::Train, Split::Val] {
            put(split.name());
            for item in dataset.split(split) {
                put(&item.image.to_string_lossy());
                put(&item.captions.len().to_string());
                item.captions.iter().for_each(|caption| put(caption));
                captions += item.captions.len();
            }
        }
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let count = |split| dataset.split(split).count();
        Record { name: dataset.name.clone(), train: count(Split::Train), val: count(Split::Val), captions, sha256 }
    }

    fn counts(&self) -> String {
        format!("`{}` with {} and {} images and {} captions", self.name, self.train, self.val, self.captions)
    }
}

/// # Errors
/// [`Error::Config`] for data that are not those of `before`, with the first that differ.
pub fn same(before: &[Record], now: &[Record]) -> Result<()> {
    const REMEDY: &str = "restore the data, or begin a new run in another folder";
    if before.len() != now.len() {
        return Err(Error::Config(format!(
            "expected {} datasets, as when the run began, but found {}\n{REMEDY}",
            before.len(),
            now.len()
        )));
    }
    match before.iter().zip(now).find(|(before, now)| before != now) {
        None => Ok(()),
        Some((before, now)) if before.counts() == now.counts() => Err(Error::Config(format!(
            "expected the images and captions that the run began with in {} but found others\n{REMEDY}",
            now.counts()
        ))),
        Some((before, now)) => Err(Error::Config(format!(
            "expected the data that the run began with, {}, but found {}\n{REMEDY}",
            before.counts(),
            now.counts()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{ImageId, Item};

    fn dataset(captions: &[&[&str]]) -> Dataset {
        let item = |(i, captions): (usize, &&[&str])| Item {
            id: ImageId::Number(i as u64),
            image: format!("{i}.png").into(),
            split: if i == 0 { Split::Val } else { Split::Train },
            captions: captions.iter().map(ToString::to_string).collect(),
            class: None,
        };
        Dataset { name: "own".into(), images: None, items: captions.iter().enumerate().map(item).collect() }
    }

    #[test]
    fn other_data_are_told_from_those_before() {
        let before = Record::of(&dataset(&[&["a"], &["b", "c"], &["d"]]));
        assert_eq!((before.train, before.val, before.captions), (2, 1, 4));
        let check = |captions: &[&[&str]]| {
            let now = Record::of(&dataset(captions));
            same(std::slice::from_ref(&before), &[now]).map_err(|error| error.to_string())
        };
        check(&[&["a"], &["b", "c"], &["d"]]).unwrap();
        let shrank = check(&[&["a"], &["b", "c"]]).unwrap_err();
        assert!(shrank.contains("`own` with 2 and 1 images and 4 captions, but found `own` with 1 and 1"), "{shrank}");
        for other in
            [&[&["a"][..], &["b", "c"], &["e"]], &[&["a"], &["b"], &["c", "d"]], &[&["a"], &["bc", ""], &["d"]]]
        {
            let error = check(other).unwrap_err();
            assert!(error.contains("but found others\nrestore the data"), "{error}");
        }
        assert!(same(&[], &[before]).unwrap_err().to_string().contains("expected 0 datasets"));
    }
}

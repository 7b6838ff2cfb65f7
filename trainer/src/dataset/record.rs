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
    /// SHA-256 of the sizes of the images' files; `None` for captions alone, and in records of before they were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<String>,
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
        let sha256 = hex(hash);
        let count = |split| dataset.split(split).count();
        let (train, val) = (count(Split::Train), count(Split::Val));
        Record { name: dataset.name.clone(), train, val, captions, sha256, sizes: sizes(dataset) }
    }

    /// Whether it is the record of the same data, as far as the one before tells.
    fn goes_on(&self, before: &Record) -> bool {
        let sizes = before.sizes.as_ref().and(self.sizes.clone());
        *before == Record { sizes, ..self.clone() }
    }

    fn counts(&self) -> String {
        format!("`{}` with {} and {} images and {} captions", self.name, self.train, self.val, self.captions)
    }
}

/// A picture that was put in another's place has another size, as a rule.
fn sizes(dataset: &Dataset) -> Option<String> {
    let folder = dataset.images.as_ref()?;
    let mut hash = Sha256::new();
    for item in [Split::Train, Split::Val].into_iter().flat_map(|split| dataset.split(split)) {
        // One that is gone is told by whoever wants to read it.
        let size = std::fs::metadata(folder.join(&item.image)).map_or(u64::MAX, |file| file.len());
        hash.update(size.to_le_bytes());
    }
    Some(hex(hash))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
    match before.iter().zip(now).find(|(before, now)| !now.goes_on(before)) {
        None => Ok(()),
        Some((before, now)) if before.sha256 == now.sha256 && before.counts() == now.counts() => {
            Err(Error::Config(format!(
                "expected the image files that the run began with in {} but found some of other sizes\n{REMEDY}",
                now.counts()
            )))
        }
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
        assert!(same(&[], std::slice::from_ref(&before)).unwrap_err().to_string().contains("expected 0 datasets"));
    }

    #[test]
    fn another_picture_of_the_same_name_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = |sizes: [usize; 2]| {
            for (at, size) in sizes.into_iter().enumerate() {
                std::fs::write(folder.path().join(format!("{at}.png")), vec![0; size]).unwrap();
            }
            Record::of(&Dataset { images: Some(folder.path().into()), ..dataset(&[&["a"], &["b"]]) })
        };
        let before = pictures([10, 20]);
        same(std::slice::from_ref(&before), &[pictures([10, 20])]).unwrap();
        // The same bytes in all, but exchanged.
        let swapped = pictures([20, 10]);
        let error = same(std::slice::from_ref(&before), std::slice::from_ref(&swapped)).unwrap_err().to_string();
        assert!(error.contains("but found some of other sizes\nrestore the data"), "{error}");
        // Records of before sizes were kept are read, and go on.
        let mut old = serde_json::to_value(&before).unwrap();
        old.as_object_mut().unwrap().remove("sizes").unwrap();
        same(&[serde_json::from_value(old).unwrap()], &[swapped]).unwrap();
    }
}

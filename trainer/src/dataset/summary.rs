//! What is in a dataset, in numbers that a person compares with the published ones.

use std::collections::HashSet;
use std::fmt;

use super::{Dataset, Split};

/// Counts of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Name of the dataset.
    pub name: String,
    /// Train, validation and test.
    pub splits: [SplitSummary; 3],
    /// Different captions that stand in both the training and the test split. Papers keep them (people write the same
    /// sentence about two fields); a figure of exact matches has to be read with this number beside it.
    pub shared_by_train_and_test: usize,
}

/// Counts of one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SplitSummary {
    /// Which.
    pub split: Split,
    /// Images.
    pub images: usize,
    /// Captions.
    pub captions: usize,
    /// Different captions, to the letter.
    pub distinct: usize,
}

/// Counts images, captions and repetitions.
pub fn summary(dataset: &Dataset) -> Summary {
    let strings =
        |split| -> HashSet<&str> { dataset.split(split).flat_map(|item| &item.captions).map(String::as_str).collect() };
    let splits = Split::ALL.map(|split| SplitSummary {
        split,
        images: dataset.split(split).count(),
        captions: dataset.split(split).map(|item| item.captions.len()).sum(),
        distinct: strings(split).len(),
    });
    let shared_by_train_and_test = strings(Split::Train).intersection(&strings(Split::Test)).count();
    Summary { name: dataset.name.clone(), splits, shared_by_train_and_test }
}

impl fmt::Display for Summary {
    /// One line a split, then the overlap where there is a test split.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.name)?;
        for SplitSummary { split, images, captions, distinct } in self.splits {
            if images > 0 {
                write!(f, "\n  {split:<5} {images:>7} images {captions:>8} captions {distinct:>8} distinct")?;
            }
        }
        if self.splits[2].images > 0 {
            write!(f, "\n  {} distinct captions stand in both train and test", self.shared_by_train_and_test)?;
        }
        Ok(())
    }
}

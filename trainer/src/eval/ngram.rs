//! Runs of one to four words and how often a caption has them.

use std::collections::BTreeMap;

/// Counts of every n-gram of lengths 1 to 4. Ordered, so that sums over them come out the same on every run.
pub type Counts<'a> = BTreeMap<&'a [&'a str], usize>;

/// The words of a tokenised caption, split at any white space.
pub fn words(tokens: &str) -> Vec<&str> {
    tokens.split_whitespace().collect()
}

/// Counts the n-grams, n = 1 to 4, of a caption.
pub fn count<'a>(words: &'a [&'a str]) -> Counts<'a> {
    let mut counts = Counts::new();
    for n in 1..=4 {
        for ngram in words.windows(n) {
            *counts.entry(ngram).or_insert(0) += 1;
        }
    }
    counts
}

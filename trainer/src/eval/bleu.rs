//! BLEU-1 to 4 (Papineni et al., ACL 2002) with pycocoevalcap's choices: the closest reference length, the shorter of
//! two equally close; counts summed over the corpus; a tiny constant over a small one where others smooth.

use super::Caption;
use super::ngram::{Counts, count, words};

/// Added to the matches, so that none at all gives a score near 0 and not exactly 0.
const TINY: f64 = 1e-15;
/// Added to the divisors.
const SMALL: f64 = 1e-9;

/// What BLEU adds up; the sum over captions scores the corpus.
#[derive(Debug, Clone, Copy, Default)]
struct Statistics {
    length: usize,
    reference_length: usize,
    /// n-grams of the hypothesis by n - 1.
    guessed: [usize; 4],
    /// Those of them that a reference has, each as often as the reference that has it most.
    correct: [usize; 4],
}

impl Statistics {
    fn of(caption: &Caption) -> Self {
        let hypothesis = words(&caption.hypothesis);
        let references: Vec<Vec<&str>> = caption.references.iter().map(|reference| words(reference)).collect();
        let mut most = Counts::new();
        for reference in &references {
            for (ngram, times) in count(reference) {
                let entry = most.entry(ngram).or_insert(0);
                *entry = times.max(*entry);
            }
        }
        let length = hypothesis.len();
        let lengths = references.iter().map(Vec::len);
        let mut out = Statistics {
            length,
            reference_length: lengths.min_by_key(|other| (other.abs_diff(length), *other)).unwrap_or(0),
            guessed: [1, 2, 3, 4].map(|n| (length + 1).saturating_sub(n)),
            correct: [0; 4],
        };
        for (ngram, times) in count(&hypothesis) {
            out.correct[ngram.len() - 1] += times.min(most.get(ngram).copied().unwrap_or(0));
        }
        out
    }

    fn add(mut self, other: &Self) -> Self {
        self.length += other.length;
        self.reference_length += other.reference_length;
        for n in 0..4 {
            self.guessed[n] += other.guessed[n];
            self.correct[n] += other.correct[n];
        }
        self
    }

    fn scores(&self) -> [f64; 4] {
        let ratio = (self.length as f64 + TINY) / (self.reference_length as f64 + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        [0, 1, 2, 3].map(|n| {
            product *= (self.correct[n] as f64 + TINY) / (self.guessed[n] as f64 + SMALL);
            f64::powf(product, 1.0 / (n as f64 + 1.0)) * brevity
        })
    }
}

/// BLEU-1 to 4 of the corpus, and of each caption.
pub fn bleu(captions: &[Caption]) -> ([f64; 4], Vec<[f64; 4]>) {
    let each: Vec<Statistics> = captions.iter().map(Statistics::of).collect();
    let corpus = each.iter().fold(Statistics::default(), Statistics::add);
    (corpus.scores(), each.iter().map(Statistics::scores).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hypothesis: &str, references: &[&str]) -> Statistics {
        Statistics::of(&Caption::new(hypothesis, references))
    }

    #[test]
    fn counts_are_clipped_by_the_richest_reference() {
        // Papineni's own example: seven times "the" counts twice.
        let statistics = of("the the the the the the the", &["the cat is on the mat", "there is a cat on the mat"]);
        assert_eq!((statistics.correct[0], statistics.guessed[0]), (2, 7));
    }

    #[test]
    fn the_shorter_of_two_equally_close_lengths() {
        assert_eq!(of("a b c d", &["a b c d e f", "a b", "a b c d e f g"]).reference_length, 2);
    }

    #[test]
    fn an_empty_hypothesis_scores_nothing() {
        let (corpus, each) = bleu(&[Caption::new("", &["a field"])]);
        assert!(corpus.iter().chain(&each[0]).all(|score| score.abs() < 1e-6), "{corpus:?}");
    }
}

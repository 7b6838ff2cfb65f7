//! CIDEr-D (Vedantam et al., CVPR 2015), which the field's tables call CIDEr: tf-idf vectors of n-grams, n = 1 to 4,
//! clipped and compared by cosine, a Gaussian on the difference of lengths (sigma 6), times 10.
//!
//! The document frequencies come from the references that are scored: figures over other sets of images cannot be
//! compared, and a subset's means nothing beside the whole's.

use std::collections::HashMap;

use super::Caption;
use super::ngram::{Counts, count, words};

/// Width of the Gaussian on the difference of lengths.
const SIGMA: f64 = 6.0;

/// How many images have an n-gram in a reference, and the logarithm of the number of images.
struct Frequencies<'a> {
    images: HashMap<&'a [&'a str], usize>,
    log_count: f64,
}

/// A caption as a tf-idf vector for each n.
struct Vector<'a> {
    weights: [HashMap<&'a [&'a str], f64>; 4],
    norms: [f64; 4],
    /// The number of bigrams, not of words: what the reference implementation compares.
    length: usize,
}

impl<'a> Vector<'a> {
    fn new(counts: &Counts<'a>, frequencies: &Frequencies) -> Self {
        let mut out = Vector { weights: Default::default(), norms: [0.0; 4], length: 0 };
        for (&ngram, &times) in counts {
            let images = frequencies.images.get(ngram).copied().unwrap_or(0).max(1);
            let weight = times as f64 * (frequencies.log_count - (images as f64).ln());
            let n = ngram.len() - 1;
            out.norms[n] += weight * weight;
            out.weights[n].insert(ngram, weight);
            out.length += if n == 1 { times } else { 0 };
        }
        out.norms = out.norms.map(f64::sqrt);
        out
    }

    /// Similarity of a hypothesis whose n-grams are `order`, summed over n.
    fn similarity(&self, order: &Counts<'a>, reference: &Vector) -> f64 {
        let mut dots = [0.0; 4];
        for &ngram in order.keys() {
            let n = ngram.len() - 1;
            let other = reference.weights[n].get(ngram).copied().unwrap_or(0.0);
            dots[n] += self.weights[n][ngram].min(other) * other;
        }
        let difference = self.length as f64 - reference.length as f64;
        let gauss = (-(difference * difference) / (2.0 * SIGMA * SIGMA)).exp();
        let cosine = |n: usize| match self.norms[n] * reference.norms[n] {
            0.0 => dots[n],
            norms => dots[n] / norms,
        };
        (0..4).map(|n| cosine(n) * gauss).sum()
    }
}

/// CIDEr-D of the corpus, and of each caption.
pub fn cider_d(captions: &[Caption]) -> (f64, Vec<f64>) {
    let hypotheses: Vec<Vec<&str>> = captions.iter().map(|caption| words(&caption.hypothesis)).collect();
    let references: Vec<Vec<Vec<&str>>> =
        captions.iter().map(|caption| caption.references.iter().map(|text| words(text)).collect()).collect();
    let counted: Vec<Vec<Counts>> = references.iter().map(|all| all.iter().map(|one| count(one)).collect()).collect();

    let mut images: HashMap<&[&str], usize> = HashMap::new();
    for of_image in &counted {
        let distinct: std::collections::BTreeSet<&[&str]> = of_image.iter().flat_map(|c| c.keys().copied()).collect();
        for ngram in distinct {
            *images.entry(ngram).or_insert(0) += 1;
        }
    }
    let frequencies = Frequencies { images, log_count: (captions.len() as f64).ln() };

    let each: Vec<f64> = hypotheses
        .iter()
        .zip(&counted)
        .map(|(hypothesis, references)| {
            let counts = count(hypothesis);
            let vector = Vector::new(&counts, &frequencies);
            let sum: f64 =
                references.iter().map(|other| vector.similarity(&counts, &Vector::new(other, &frequencies))).sum();
            10.0 * sum / 4.0 / references.len().max(1) as f64
        })
        .collect();
    (super::mean(&each), each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_caption_of_its_own_words_scores_ten() {
        let captions =
            [Caption::new("one two three four", &["one two three four"]), Caption::new("five six", &["seven eight"])];
        let (corpus, each) = cider_d(&captions);
        assert!((each[0] - 10.0).abs() < 1e-12 && each[1] == 0.0, "{each:?}");
        assert!((corpus - 5.0).abs() < 1e-12);
    }

    #[test]
    fn words_of_every_image_weigh_nothing() {
        // "field" is in both images' references: ln 2 - ln 2.
        let (_, each) = cider_d(&[Caption::new("field", &["a field"]), Caption::new("field", &["the field"])]);
        assert_eq!(each, [0.0, 0.0]);
    }

    #[test]
    fn length_counts_bigrams() {
        // One word against two: 0 bigrams against 1.
        let captions = [Caption::new("a", &["a b"]), Caption::new("x", &["y"])];
        let unigrams = 1.0 / f64::sqrt(2.0);
        let expected = 10.0 / 4.0 * unigrams * (-1.0f64 / 72.0).exp();
        assert!((cider_d(&captions).1[0] - expected).abs() < 1e-12);
    }
}

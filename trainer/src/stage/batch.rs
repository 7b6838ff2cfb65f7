//! What a step sees: a batch, drawn by the run's seed.

use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use rscapret::{Error, Result};

/// The random numbers of one step, whatever came before: a resumed run draws the same.
pub fn step_rng(seed: u64, step: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step << 16 | stream);
    rng
}

/// A batch from weighted sources: of each its share of different images, the last filling up, and of each image a random
/// one of its `captions`.
pub fn draw<'a, P, C>(
    rng: &mut impl Rng,
    sources: &'a [(f64, Vec<P>)],
    batch: usize,
    captions: impl Fn(&'a P) -> &'a [C],
) -> Vec<(&'a P, &'a C)> {
    let mut drawn = Vec::with_capacity(batch);
    for (count, (_, pairs)) in shares(sources, batch).into_iter().zip(sources) {
        for at in sample(rng, pairs.len(), count.min(pairs.len())) {
            let captions = captions(&pairs[at]);
            drawn.push((&pairs[at], &captions[rng.random_range(0..captions.len())]));
        }
    }
    drawn
}

/// How many images of each source a batch has.
fn shares<P>(sources: &[(f64, Vec<P>)], batch: usize) -> Vec<usize> {
    let whole: f64 = sources.iter().map(|(weight, _)| weight).sum();
    let mut left = batch;
    let share = |(i, (weight, _)): (usize, &(f64, Vec<P>))| {
        let count = if i + 1 == sources.len() { left } else { (batch as f64 * weight / whole) as usize };
        left -= count;
        count
    };
    sources.iter().enumerate().map(share).collect()
}

/// Whether every source has as many different images as its share of a batch: [`draw`] would make smaller batches of less.
///
/// # Errors
/// [`Error::Config`] with the first of the `names` whose source has not.
pub fn fills_shares<'n, P>(
    sources: &[(f64, Vec<P>)],
    names: impl IntoIterator<Item = &'n str>,
    batch: usize,
) -> Result<()> {
    for ((share, (_, pairs)), name) in shares(sources, batch).into_iter().zip(sources).zip(names) {
        if pairs.len() < share {
            return Err(Error::Config(format!(
                "expected `{name}` to have {share} images to train on, its share of a batch of {batch}, but found {}\n\
                 lower `batch`, or the `weight` of that dataset",
                pairs.len()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sources of images that are their own only caption: the first digit tells the source.
    fn sources(parts: &[(f64, usize)]) -> Vec<(f64, Vec<[usize; 1]>)> {
        let images = |(at, &(weight, count)): (usize, &(f64, usize))| {
            (weight, (0..count).map(|image| [1000 * at + image]).collect())
        };
        parts.iter().enumerate().map(images).collect()
    }

    #[test]
    fn a_batch_has_each_sources_share_of_different_images() {
        let sources = sources(&[(1.68, 100), (8.73, 300), (0.5, 40), (25.2, 900)]);
        let mut seen = [0; 4];
        for step in 0..200 {
            let drawn = draw(&mut step_rng(1, step, 0), &sources, 256, |image| image);
            let of = |source: usize| drawn.iter().filter(|(_, caption)| **caption / 1000 == source).count();
            // 256 shared by weights, rounded down; the last fills up.
            assert_eq!([of(0), of(1), of(2), of(3)], [11, 61, 3, 181]);
            let mut images: Vec<usize> = drawn.iter().map(|(_, caption)| **caption).collect();
            images.sort_unstable();
            images.dedup();
            assert_eq!(images.len(), 256, "an image stands twice in a batch");
            images.iter().for_each(|image| seen[image / 1000] |= 1u64 << (image % 1000 % 40));
            let again = draw(&mut step_rng(1, step, 0), &sources, 256, |image| image);
            assert_eq!(drawn, again);
        }
        // All of the smallest one come up.
        assert_eq!(seen[2].count_ones(), 40);
    }

    #[test]
    fn a_source_that_cannot_fill_its_share_is_told() {
        let names = ["UCM", "RSICD"];
        let fills = |parts: &[(f64, usize)], batch| fills_shares(&sources(parts), names, batch);
        fills(&[(1.0, 8), (1.0, 8)], 16).unwrap();
        fills(&[(0.01, 0), (1.0, 16)], 16).unwrap();
        let error = fills(&[(1.0, 8), (1.0, 8)], 17).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "expected `RSICD` to have 9 images to train on, its share of a batch of 17, but found 8\n"
            )
        );
        assert!(fills(&[(3.0, 11), (1.0, 90)], 16).unwrap_err().to_string().contains("`UCM` to have 12 images"));
    }
}

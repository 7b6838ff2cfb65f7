//! Choosing tokens from logits on the host: greedy, by chance within a nucleus, or by beam search.
//!
//! Banned tokens have a logit of minus infinity. NaN and plus infinity are errors: no model means them.

mod beam;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use beam::{BeamSearch, Hypothesis, Step};

use crate::error::{Error, Result};

/// Id of the greatest logit; of equals the lowest.
///
/// # Errors
/// [`Error::Backend`] for logits that are none: NaN, plus infinity, or nothing left to choose.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0u32..).zip(logits) {
        check(id, logit)?;
        if logit > best.map_or(f32::NEG_INFINITY, |b| b.1) {
            best = Some((id, logit));
        }
    }
    best.map(|b| b.0).ok_or_else(nothing_left)
}

/// Logarithms of the probabilities that logits mean: (V) -> (V).
///
/// # Errors
/// As [`argmax`].
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>> {
    let max = logits[argmax(logits)? as usize];
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    Ok(logits.iter().map(|&l| (f64::from(l) - shift) as f32).collect())
}

/// Makes tokens impossible. Ids beyond the vocabulary are impossible already.
pub fn ban(logits: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Draws tokens; the same seed and logits give the same tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, rng: ChaCha8Rng::seed_from_u64(0) }
    }

    /// `temperature` divides the logits: 0 is greedy, 1 the model's own probabilities, at most 10. `top_p` in (0, 1] keeps
    /// the likeliest tokens that together reach it (Holtzman et al., 2020).
    ///
    /// # Errors
    /// [`Error::Config`] for values out of range.
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Self> {
        if !(0.0..=10.0).contains(&temperature) {
            return Err(Error::Config(format!("expected `temperature` in 0..=10 but found {temperature}")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Config(format!("expected `top_p` above 0 and at most 1 but found {top_p}")));
        }
        Ok(Self { temperature, top_p, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// Whether it takes the greatest logit and draws nothing.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Noise for `n` logits, with which the largest of them is a draw from all (the Gumbel-max trick; Maddison et al., 2014), so
    /// that whatever finds the largest can draw; `None` where the largest itself is wanted, or of the likeliest some alone.
    pub fn noise(&mut self, n: usize) -> Option<Vec<f32>> {
        if self.is_greedy() || !self.is_of_all() {
            return None;
        }
        let gumbel = |uniform: f64| -(-uniform.max(f64::MIN_POSITIVE).ln()).ln();
        Some((0..n).map(|_| self.temperature * gumbel(self.rng.random()) as f32).collect())
    }

    /// Whether every token may be drawn.
    fn is_of_all(&self) -> bool {
        self.top_p >= 1.0
    }

    /// Whether the largest of the logits, with [`Sampler::noise`] or without, is the token.
    pub fn takes_largest(&self) -> bool {
        self.is_greedy() || self.is_of_all()
    }

    /// One token for logits (V).
    ///
    /// # Errors
    /// As [`argmax`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let likeliest = argmax(logits)?;
        if self.is_greedy() {
            return Ok(likeliest);
        }
        if let Some(noise) = self.noise(logits.len()) {
            return argmax(&logits.iter().zip(noise).map(|(logit, noise)| logit + noise).collect::<Vec<_>>());
        }
        let max = logits[likeliest as usize];
        let weight = |logit: f32| (f64::from(logit - max) / f64::from(self.temperature)).exp();
        let mut weights: Vec<(u32, f64)> = (0u32..).zip(logits).map(|(id, &l)| (id, weight(l))).collect();
        weights.retain(|w| w.1 > 0.0);
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = weights.iter().map(|w| w.1).sum();
        let mut nucleus = 0.0;
        let kept = weights
            .iter()
            .position(|w| {
                nucleus += w.1;
                nucleus >= f64::from(self.top_p) * total
            })
            .map_or(weights.len(), |last| last + 1);
        let mut left = self.rng.random::<f64>() * nucleus;
        for &(id, weight) in &weights[..kept] {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        // Rounding may leave a trifle.
        Ok(weights[kept - 1].0)
    }
}

fn check(id: u32, logit: f32) -> Result<()> {
    if logit.is_nan() || logit == f32::INFINITY {
        return Err(Error::Backend(format!("expected logits to be numbers but found {logit} for token {id}")));
    }
    Ok(())
}

fn nothing_left() -> Error {
    Error::Backend("expected a token that is not banned but found none".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: f32 = f32::NEG_INFINITY;

    #[test]
    fn argmax_takes_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, NEVER, 3.0]).unwrap(), 1);
        assert_eq!(argmax(&[NEVER, f32::MIN]).unwrap(), 1);
        for bad in [&[][..], &[NEVER], &[0.0, f32::NAN], &[f32::INFINITY]] {
            assert!(matches!(argmax(bad), Err(Error::Backend(_))), "{bad:?}");
        }
    }

    #[test]
    fn log_softmax_sums_to_one() {
        let out = log_softmax(&[1000.0, 1001.0, NEVER]).unwrap();
        assert!((out[1] - -0.313_261_7).abs() < 1e-6 && (out[0] - -1.313_261_7).abs() < 1e-6 && out[2] == NEVER);
    }

    #[test]
    fn banned_tokens_are_never_drawn() {
        let mut logits = vec![5.0, 1.0, 0.5, 4.0];
        ban(&mut logits, &[0, 3, 99]);
        let mut sampler = Sampler::new(1.0, 1.0, 1).unwrap();
        assert!((0..200).all(|_| [1, 2].contains(&sampler.sample(&logits).unwrap())));
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let probabilities = [0.5f32, 0.3, 0.2];
        let logits: Vec<f32> = probabilities.iter().map(|p| 2.0 * p.ln()).collect();
        // Temperature 2 undoes the factor 2.
        let mut sampler = Sampler::new(2.0, 1.0, 42).unwrap();
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (count, p) in counts.iter().zip(probabilities) {
            // Four standard deviations are under 0.015.
            assert!((*count as f32 / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn noise_is_for_draws_from_all() {
        let noise = |temperature, top_p| Sampler::new(temperature, top_p, 1).unwrap().noise(1000);
        assert_eq!((noise(0.0, 1.0), noise(1.0, 0.9)), (None, None));
        let (one, two) = (noise(1.0, 1.0).unwrap(), noise(2.0, 1.0).unwrap());
        assert!(one.iter().zip(&two).all(|(one, two)| one.is_finite() && 2.0 * one == *two));
        // The mean of Gumbel's distribution is Euler's constant, its variance pi^2 / 6.
        let mean = one.iter().sum::<f32>() / 1000.0;
        assert!((mean - 0.577).abs() < 4.0 * 1.283 / 1000f32.sqrt(), "{mean}");
    }

    #[test]
    fn nucleus_is_the_smallest_that_reaches_top_p() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let drawn = |top_p: f32| {
            let mut sampler = Sampler::new(1.0, top_p, 3).unwrap();
            (0..2000).map(|_| sampler.sample(&logits).unwrap()).max().unwrap()
        };
        assert_eq!([drawn(0.01), drawn(0.49), drawn(0.6), drawn(0.9), drawn(1.0)], [0, 0, 1, 2, 3]);
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 / 3.0).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(0.8, 0.95, seed).unwrap();
            (0..30).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert_eq!(Sampler::greedy().sample(&logits).unwrap(), 6);
    }

    #[test]
    fn ranges_are_checked() {
        for (temperature, top_p) in [(-0.1, 1.0), (f32::NAN, 1.0), (11.0, 1.0), (1.0, 0.0), (1.0, 1.1), (1.0, f32::NAN)]
        {
            assert!(matches!(Sampler::new(temperature, top_p, 0), Err(Error::Config(_))));
        }
    }
}

//! Beam search without a model: which beams go on with which tokens, and which texts are done.
//!
//! Follows Hugging Face's `BeamSearchScorer` with `early_stopping=False`: of the best `2 * beams` continuations those that
//! end the text become hypotheses if they rank among the first `beams`; the others go on. A hypothesis scores its
//! summed log-probability over its length (end of text counted) to the power of `length_penalty`. The search stops when
//! there are `beams` hypotheses and the best continuation, scored at its present length, beats none of them.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::check;
use crate::error::{Error, Result};

/// Most beams; the field uses 3 to 5.
const MAX_BEAMS: usize = 64;

/// The state of one search.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    beams: usize,
    length_penalty: f64,
    eos: Option<u32>,
    max_tokens: usize,
    live: Vec<Beam>,
    /// Best first, at most `beams`.
    hypotheses: Vec<Hypothesis>,
    length: usize,
}

#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<u32>,
    log_probability: f64,
}

/// A text.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens without the end.
    pub tokens: Vec<u32>,
    /// Log-probability over length to the power of the penalty.
    pub score: f64,
    /// Whether the model ended it, rather than the greatest length.
    pub ended: bool,
}

/// How the live beams go on: beam i is beam `parents[i]` and one more token, `tokens[i]`. Empty when the search is done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Rows that the cache must copy.
    pub parents: Vec<usize>,
    /// What the model is fed next.
    pub tokens: Vec<u32>,
}

/// A continuation; the greater the better, of equals the earlier beam and the lower token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    log_probability: f64,
    beam: usize,
    token: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |c: &Self| Reverse((c.beam, c.token));
        self.log_probability.total_cmp(&other.log_probability).then(place(self).cmp(&place(other)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl BeamSearch {
    /// At the end of a prompt: one live beam without tokens.
    ///
    /// # Errors
    /// [`Error::Config`] for values out of range.
    pub fn new(beams: usize, length_penalty: f32, eos: Option<u32>, max_tokens: usize) -> Result<Self> {
        if !(1..=MAX_BEAMS).contains(&beams) {
            return Err(Error::Config(format!("expected `beams` in 1..={MAX_BEAMS} but found {beams}")));
        }
        if !length_penalty.is_finite() {
            return Err(Error::Config(format!("expected a finite `length_penalty` but found {length_penalty}")));
        }
        if max_tokens == 0 {
            return Err(Error::Config("expected `max_tokens` of at least 1 but found 0".into()));
        }
        let start = Beam { tokens: Vec::new(), log_probability: 0.0 };
        Ok(Self {
            beams,
            length_penalty: length_penalty.into(),
            eos,
            max_tokens,
            live: vec![start],
            hypotheses: Vec::new(),
            length: 0,
        })
    }

    /// Rows of log-probabilities that [`BeamSearch::advance`] reads: 1 at first, then up to `beams`, 0 when done.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Whether the best text is known.
    pub fn done(&self) -> bool {
        self.live.is_empty()
    }

    /// Takes the log-probabilities (V) of what follows each live beam. Rows after [`BeamSearch::live`] are not read, so
    /// that a batch of one size may be kept.
    ///
    /// # Errors
    /// [`Error::Config`] for fewer rows than live beams, [`Error::Backend`] for NaN and plus infinity.
    pub fn advance<R: AsRef<[f32]>>(&mut self, log_probabilities: &[R]) -> Result<Step> {
        if log_probabilities.len() < self.live.len() {
            return Err(Error::Config(format!(
                "expected {} rows of log-probabilities but found {}",
                self.live.len(),
                log_probabilities.len()
            )));
        }
        if self.done() {
            return Ok(Step::default());
        }
        let candidates = self.best_candidates(log_probabilities)?;
        self.length += 1;
        let mut step = Step::default();
        let mut next = Vec::with_capacity(self.beams);
        for (rank, candidate) in candidates.iter().enumerate() {
            let parent = &self.live[candidate.beam];
            if Some(candidate.token) == self.eos {
                if rank < self.beams {
                    let tokens = parent.tokens.clone();
                    self.finish(tokens, candidate.log_probability, true);
                }
            } else if next.len() < self.beams {
                let mut tokens = parent.tokens.clone();
                tokens.push(candidate.token);
                next.push(Beam { tokens, log_probability: candidate.log_probability });
                step.parents.push(candidate.beam);
                step.tokens.push(candidate.token);
            }
        }
        let attainable = candidates.first().map(|best| self.score(best.log_probability));
        let beaten = self.hypotheses.len() == self.beams
            && attainable.is_none_or(|score| self.hypotheses.iter().all(|h| h.score >= score));
        if beaten {
            next.clear();
        } else if self.length >= self.max_tokens {
            for beam in next.drain(..) {
                self.finish(beam.tokens, beam.log_probability, false);
            }
        }
        self.live = next;
        Ok(if self.done() { Step::default() } else { step })
    }

    /// The best text so far; of a search that is not done, only among texts that have ended.
    pub fn best(&self) -> Option<&Hypothesis> {
        self.hypotheses.first()
    }

    /// The best `2 * beams` continuations, best first.
    fn best_candidates<R: AsRef<[f32]>>(&self, log_probabilities: &[R]) -> Result<Vec<Candidate>> {
        let most = 2 * self.beams;
        let mut kept = BinaryHeap::with_capacity(most + 1);
        for (beam, (parent, row)) in self.live.iter().zip(log_probabilities).enumerate() {
            for (token, &value) in (0u32..).zip(row.as_ref()) {
                check(token, value)?;
                let log_probability = parent.log_probability + f64::from(value);
                if log_probability == f64::NEG_INFINITY {
                    continue;
                }
                let candidate = Candidate { log_probability, beam, token };
                if kept.len() < most {
                    kept.push(Reverse(candidate));
                } else if kept.peek().is_some_and(|worst| candidate > worst.0) {
                    kept.pop();
                    kept.push(Reverse(candidate));
                }
            }
        }
        Ok(kept.into_sorted_vec().into_iter().map(|c| c.0).collect())
    }

    fn score(&self, log_probability: f64) -> f64 {
        log_probability / (self.length as f64).powf(self.length_penalty)
    }

    fn finish(&mut self, tokens: Vec<u32>, log_probability: f64, ended: bool) {
        let score = self.score(log_probability);
        let at = self.hypotheses.partition_point(|h| h.score >= score);
        self.hypotheses.insert(at, Hypothesis { tokens, score, ended });
        self.hypotheses.truncate(self.beams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caption::sampling::log_softmax;

    const EOS: u32 = 0;
    const VOCABULARY: u32 = 3;

    /// What follows depends on the last token alone.
    fn model(last: Option<u32>) -> Vec<f32> {
        let logits = match last {
            None => [-1.0, 0.9, 1.0],
            Some(1) => [2.0, 0.1, -0.5],
            Some(_) => [0.2, 0.4, 0.3],
        };
        log_softmax(&logits).unwrap()
    }

    fn search(beams: usize, penalty: f32, max_tokens: usize) -> (Hypothesis, usize) {
        let mut search = BeamSearch::new(beams, penalty, Some(EOS), max_tokens).unwrap();
        let mut last = vec![None];
        let mut steps = 0;
        while !search.done() {
            let rows: Vec<Vec<f32>> = last.iter().map(|&l| model(l)).collect();
            last = search.advance(&rows).unwrap().tokens.into_iter().map(Some).collect();
            assert_eq!(last.len(), search.live());
            steps += 1;
        }
        (search.best().unwrap().clone(), steps)
    }

    /// Every text of at most `max_tokens`, scored.
    fn exhaustive(penalty: f64, max_tokens: usize) -> Vec<(f64, Vec<u32>)> {
        let mut open = vec![(0.0, Vec::<u32>::new())];
        let mut done = Vec::new();
        for length in 1..=max_tokens {
            let score = |sum: f64| sum / (length as f64).powf(penalty);
            let mut next = Vec::new();
            for (sum, tokens) in open {
                let row = model(tokens.last().copied());
                for token in 0..VOCABULARY {
                    let sum: f64 = sum + f64::from(row[token as usize]);
                    let mut tokens = tokens.clone();
                    if token == EOS {
                        done.push((score(sum), tokens));
                        continue;
                    }
                    tokens.push(token);
                    match length == max_tokens {
                        true => done.push((score(sum), tokens)),
                        false => next.push((sum, tokens)),
                    }
                }
            }
            open = next;
        }
        done.sort_by(|a, b| b.0.total_cmp(&a.0));
        done
    }

    #[test]
    fn a_wide_beam_finds_the_optimum() {
        for penalty in [0.0, 0.6, 1.0, 2.0] {
            for max_tokens in 1..=4 {
                let (best, _) = search(MAX_BEAMS, penalty, max_tokens);
                let all = exhaustive(penalty.into(), max_tokens);
                assert!(all.len() < MAX_BEAMS);
                assert!((best.score - all[0].0).abs() < 1e-9, "{best:?} {:?}", all[0]);
                assert_eq!(best.tokens, all[0].1);
            }
        }
    }

    #[test]
    fn one_beam_is_greedy_and_stops_at_the_end_of_text() {
        // Greedy takes 2, then 1, then the end.
        let (best, steps) = search(1, 1.0, 10);
        assert_eq!((best.tokens.as_slice(), best.ended, steps), (&[2, 1][..], true, 3));
        // A second beam sees that 1 and the end is likelier.
        assert_eq!(search(2, 0.0, 10).0.tokens, [1]);
    }

    #[test]
    fn the_greatest_length_ends_texts() {
        let mut search = BeamSearch::new(2, 1.0, None, 3).unwrap();
        for step in 0..3 {
            assert!(!search.done(), "{step}");
            search.advance(&[[-1.0, -0.5], [-1.0, -0.5]]).unwrap();
        }
        let best = search.best().unwrap();
        assert!(search.done() && !best.ended && best.tokens == [1, 1, 1] && (best.score + 0.5).abs() < 1e-9);
        assert_eq!(search.advance::<[f32; 0]>(&[]).unwrap(), Step::default());
    }

    #[test]
    fn parents_name_the_rows() {
        let mut search = BeamSearch::new(2, 1.0, None, 9).unwrap();
        assert_eq!(search.live(), 1);
        let step = search.advance(&[[-2.0, -0.1, -1.0]]).unwrap();
        assert_eq!(step, Step { parents: vec![0, 0], tokens: vec![1, 2] });
        // Both best continuations are of the second beam, and of equals the lower token comes first.
        let step = search.advance(&[[-9.0, -9.0, -9.0], [-0.1, -0.1, f32::NEG_INFINITY]]).unwrap();
        assert_eq!(step, Step { parents: vec![1, 1], tokens: vec![0, 1] });
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(BeamSearch::new(0, 1.0, None, 5).is_err());
        assert!(BeamSearch::new(65, 1.0, None, 5).is_err());
        assert!(BeamSearch::new(2, f32::NAN, None, 5).is_err());
        assert!(BeamSearch::new(2, 1.0, None, 0).is_err());
        let mut search = BeamSearch::new(2, 1.0, None, 5).unwrap();
        assert!(matches!(search.advance(&[[0.0, f32::NAN]]), Err(Error::Backend(_))));
        assert!(matches!(search.advance::<[f32; 2]>(&[]), Err(Error::Config(_))));
    }
}

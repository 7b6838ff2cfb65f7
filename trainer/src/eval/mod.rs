//! Scores as the field's papers report them: what pycocoevalcap computes, and recall of retrieval.
//!
//! [`score`] takes raw text all the way; the modules are its steps.

pub mod bleu;
pub mod cider_d;
pub mod java;
mod ngram;
pub mod ptb;
mod ptb_abbreviations;
pub mod recall;
pub mod rouge_l;
mod scores;

pub use ptb::PtbTokenizer;
pub use recall::{Protocol, Recall, recall};
pub use scores::{CorpusScores, ImageScores, Scored, Scores, score, tokenize};

/// A tokenised hypothesis with its tokenised references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// Tokens of the generated caption, joined by spaces.
    pub hypothesis: String,
    /// Those of each reference.
    pub references: Vec<String>,
}

impl Caption {
    /// From text that is tokenised already.
    pub fn new(hypothesis: &str, references: &[&str]) -> Self {
        Caption { hypothesis: hypothesis.to_string(), references: references.iter().map(ToString::to_string).collect() }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

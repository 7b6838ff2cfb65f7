//! All caption scores together, under the names of pycocoevalcap.

use rayon::prelude::*;
use rscapret::{Error, Result};
use serde::{Deserialize, Serialize};

use super::ptb::PtbTokenizer;
use super::{Caption, bleu::bleu, cider_d::cider_d, java::Jars, rouge_l::rouge_l};
use crate::dataset::ImageId;

/// Caption scores of a corpus or of one image; serialised in this order. BLEU, ROUGE-L, METEOR and SPICE lie in 0 to 1,
/// CIDEr in 0 to 10.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// BLEU of single words.
    #[serde(rename = "Bleu_1")]
    pub bleu_1: f64,
    /// … of words and pairs.
    #[serde(rename = "Bleu_2")]
    pub bleu_2: f64,
    /// … up to three words.
    #[serde(rename = "Bleu_3")]
    pub bleu_3: f64,
    /// … up to four words.
    #[serde(rename = "Bleu_4")]
    pub bleu_4: f64,
    /// METEOR 1.5; `None` when it was not run.
    #[serde(rename = "METEOR", default, skip_serializing_if = "Option::is_none")]
    pub meteor: Option<f64>,
    /// ROUGE-L.
    #[serde(rename = "ROUGE_L")]
    pub rouge_l: f64,
    /// CIDEr-D.
    #[serde(rename = "CIDEr")]
    pub cider: f64,
    /// SPICE; `None` when it was not run.
    #[serde(rename = "SPICE", default, skip_serializing_if = "Option::is_none")]
    pub spice: Option<f64>,
}

impl Scores {
    /// Names and values in the order of papers' tables; `None` was not run.
    pub fn named(&self) -> [(&'static str, Option<f64>); 8] {
        [
            ("Bleu_1", Some(self.bleu_1)),
            ("Bleu_2", Some(self.bleu_2)),
            ("Bleu_3", Some(self.bleu_3)),
            ("Bleu_4", Some(self.bleu_4)),
            ("METEOR", self.meteor),
            ("ROUGE_L", Some(self.rouge_l)),
            ("CIDEr", Some(self.cider)),
            ("SPICE", self.spice),
        ]
    }
}

/// Scores of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageScores {
    /// Which image.
    pub image_id: ImageId,
    /// Its scores.
    #[serde(flatten)]
    pub scores: Scores,
}

/// Scores of a corpus and of each of its images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusScores {
    /// Of the whole. CIDEr and ROUGE-L are means over the images; BLEU is not.
    #[serde(flatten)]
    pub corpus: Scores,
    /// Of each image, in the order given.
    pub images: Vec<ImageScores>,
}

/// An image's generated caption and what people wrote, raw.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Which image.
    pub id: ImageId,
    /// The caption to be scored.
    pub hypothesis: String,
    /// What it is compared with, at least one.
    pub references: Vec<String>,
}

/// Tokenises and scores every image with the native metrics: BLEU-1 to 4, ROUGE-L, CIDEr-D.
///
/// # Errors
/// When there is nothing to score or an image has no reference.
pub fn score(images: &[Scored]) -> Result<CorpusScores> {
    if images.is_empty() {
        return Err(Error::Config("expected at least one image to score but found none".to_string()));
    }
    if let Some(image) = images.iter().find(|image| image.references.is_empty()) {
        return Err(Error::Config(format!("expected references of image {} but found none", image.id)));
    }
    let captions = tokenize(images)?;
    let (bleu, bleu_each) = bleu(&captions);
    let (rouge, rouge_each) = rouge_l(&captions);
    let (cider, cider_each) = cider_d(&captions);
    let images = images.iter().zip(bleu_each).zip(rouge_each.iter().zip(cider_each));
    Ok(CorpusScores {
        corpus: scores(bleu, rouge, cider),
        images: images
            .map(|((image, bleu), (&rouge, cider))| ImageScores {
                image_id: image.id.clone(),
                scores: scores(bleu, rouge, cider),
            })
            .collect(),
    })
}

/// The captions as all metrics take them.
///
/// # Errors
/// When the tokenizer's own tables are broken, which a test excludes.
pub fn tokenize(images: &[Scored]) -> Result<Vec<Caption>> {
    let tokenizer = PtbTokenizer::new()?;
    let captions = images.par_iter().map(|image| Caption {
        hypothesis: tokenizer.tokenize(&image.hypothesis),
        references: image.references.iter().map(|text| tokenizer.tokenize(text)).collect(),
    });
    Ok(captions.collect())
}

impl CorpusScores {
    /// Adds METEOR and SPICE by the reference programs. What could not be run is told in the answer, and its score stays
    /// absent: captions that took hours are not lost to a missing program.
    ///
    /// # Errors
    /// As [`tokenize`].
    pub fn add_java(&mut self, images: &[Scored], jars: &Jars) -> Result<Vec<Error>> {
        let captions = tokenize(images)?;
        let mut failed = Vec::new();
        match jars.meteor(&captions) {
            Err(error) => failed.push(error),
            Ok(score) => {
                self.corpus.meteor = Some(score.corpus);
                self.images.iter_mut().zip(score.images).for_each(|(image, score)| image.scores.meteor = Some(score));
            }
        }
        match jars.spice(&captions) {
            Err(error) => failed.push(error),
            Ok(score) => {
                self.corpus.spice = Some(score.corpus);
                self.images.iter_mut().zip(score.images).for_each(|(image, score)| image.scores.spice = Some(score));
            }
        }
        Ok(failed)
    }
}

fn scores([bleu_1, bleu_2, bleu_3, bleu_4]: [f64; 4], rouge_l: f64, cider: f64) -> Scores {
    Scores { bleu_1, bleu_2, bleu_3, bleu_4, meteor: None, rouge_l, cider, spice: None }
}

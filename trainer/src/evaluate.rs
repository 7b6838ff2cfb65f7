//! Scores of a model on datasets, as rows of a table like the paper's.

mod begun;

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

pub use begun::{Answer, Begun};
use indicatif::ProgressBar;
use pollster::block_on;
use rscapret::{
    Candle, Context, Error, Result,
    caption::{Captioner, DecodeOptions},
    clip::preprocess::{Picture, decode},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    ahead::{ahead, cores},
    bridge::{query_ids, text_embedding},
    clip::Clip,
    dataset::{Dataset, DatasetConfig, Item, Split, load},
    eval::{
        Protocol, Recall, Scored, Scores,
        java::Jars,
        recall::{captions_of, recall},
        score,
    },
    files::unreadable,
    vars::values,
};

/// Images and texts that go through a tower at once.
const BATCH: usize = 16;
/// Rows of texts that go through the language model at once.
const ROWS: usize = 2048;

/// One model on one dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which model.
    pub model: String,
    /// Which dataset.
    pub dataset: String,
    /// Which split of it.
    pub split: Split,
    /// Images scored.
    pub images: usize,
    /// Captions of theirs, the queries of text-to-image retrieval.
    pub captions: usize,
    /// Items of the dataset, of any split, that could not be used: with any, the figures are those of a part, and not
    /// comparable.
    pub refused: usize,
    /// Beams of the decoding; `None` where nothing was captioned.
    pub beams: Option<usize>,
    /// Of the captions; `None` for a model that only retrieves.
    #[serde(flatten)]
    pub scores: Option<Scores>,
    /// Only an image's own captions count.
    #[serde(flatten)]
    pub own_image: Recall,
    /// Captions of the same text count, too.
    pub same_string: Recall,
}

/// A dataset's split, ready to be scored.
pub struct Task {
    dataset: Dataset,
    split: Split,
    items: Vec<Item>,
    refused: usize,
}

impl Task {
    /// # Errors
    /// As [`load`]; [`Error::Config`] for a dataset without images and for an empty split.
    pub fn open(config: &DatasetConfig, split: Split) -> Result<Self> {
        let (dataset, refusals) = load(config)?;
        let problem = |what: String| Err(Error::Config(what)).at(format!("dataset `{}`", dataset.name));
        if dataset.images.is_none() {
            return problem("expected `images`, the folder, but found none".to_string());
        }
        let items: Vec<Item> = dataset.split(split).cloned().collect();
        if items.is_empty() {
            let counts = Split::ALL.map(|split| format!("{} {split}", dataset.split(split).count())).join(", ");
            return problem(format!("expected images of split `{split}` but found {counts}\nchoose one with --split"));
        }
        Ok(Task { dataset, split, items, refused: refusals.items() })
    }

    /// Name of the dataset.
    pub fn name(&self) -> &str {
        &self.dataset.name
    }

    /// Images to score.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: an empty one is not opened.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// An item's picture, decoded. One that cannot be read is an error: a part must not be scored.
    fn picture(&self, item: &Item) -> Result<Picture> {
        let path = self.dataset.image_path(item)?;
        let bytes = std::fs::read(&path).map_err(unreadable);
        bytes.and_then(|bytes| decode(&bytes)).at(path.display())
    }

    /// Different texts of the captions, and for each caption, item by item, which of them it is.
    fn texts(&self) -> (Vec<&str>, Vec<usize>) {
        let (mut distinct, mut index, mut at) = (Vec::new(), Vec::new(), HashMap::new());
        for text in self.items.iter().flat_map(|item| &item.captions) {
            let next = distinct.len();
            let known = *at.entry(text.as_str()).or_insert(next);
            if known == next {
                distinct.push(text.as_str());
            }
            index.push(known);
        }
        (distinct, index)
    }

    /// The row of embeddings: images (N, J) in the items' order, and those of the distinct texts.
    fn row(&self, model: &str, images: &[f32], texts: &[f32], joint: usize) -> Result<Row> {
        let (distinct, index) = self.texts();
        let captions = captions_of(&self.items, |item| &item.captions);
        let product = candle_core::Tensor::from_slice(images, (self.items.len(), joint), &candle_core::Device::Cpu)?
            .matmul(
                &candle_core::Tensor::from_slice(texts, (distinct.len(), joint), &candle_core::Device::Cpu)?.t()?,
            )?;
        let product = values(&product)?;
        let similarity: Vec<f32> =
            product.chunks_exact(distinct.len()).flat_map(|row| index.iter().map(|&text| row[text])).collect();
        let at = |protocol| recall(&similarity, self.items.len(), &captions, protocol);
        Ok(Row {
            model: model.to_string(),
            dataset: self.dataset.name.clone(),
            split: self.split,
            images: self.items.len(),
            captions: captions.len(),
            refused: self.refused,
            beams: None,
            scores: None,
            own_image: at(Protocol::OwnImage)?,
            same_string: at(Protocol::SameString)?,
        })
    }
}

/// A bundle's row of one way of decoding, with its captions as a COCO results file, and what of METEOR and SPICE could not
/// be run.
pub struct BundleResult {
    /// Scores.
    pub row: Row,
    /// `[{image_id, caption}]`.
    pub captions: Value,
    /// Why a column is empty.
    pub not_run: Vec<Error>,
}

/// Embeds every image of the task with a bundle, and captions it in each way of `options`: one result a way. Where there is
/// an evaluation that was `begun`, its answers are taken, and new ones kept.
///
/// # Errors
/// An image that cannot be read; what the models answer; a full disk.
pub fn bundle(
    captioner: &Captioner<Candle>,
    model: &str,
    task: &Task,
    options: &[DecodeOptions],
    jars: Option<&Jars>,
    mut begun: Option<&mut Begun>,
    bar: &ProgressBar,
) -> Result<Vec<BundleResult>> {
    let joint = captioner.projections().config().joint_size;
    // One that does not fit was not written by us: it is made anew.
    let fits = |answer: &Answer| answer.embedding.len() == joint && answer.captions.len() == options.len();
    let taken = |item: &Item| begun.as_mut()?.take(task.name(), &item.id).filter(fits);
    let before: Vec<Option<Answer>> = task.items.iter().map(taken).collect();
    let missing: Vec<&Item> = task.items.iter().zip(&before).filter(|(_, b)| b.is_none()).map(|(i, _)| i).collect();
    let (mut images, mut ways) = (Vec::new(), vec![Vec::new(); options.len()]);
    ahead(
        &missing,
        cores(),
        |item| task.picture(item),
        |pictures| {
            for (item, before) in task.items.iter().zip(before) {
                let answer = match before {
                    Some(answer) => answer,
                    None => {
                        let picture: Vec<Picture> = pictures.next().into_iter().collect::<Result<_>>()?;
                        let answer = block_on(answer_of(captioner, &picture, options))?;
                        if let Some(begun) = &mut begun {
                            begun.keep(task.name(), &item.id, &answer)?;
                        }
                        answer
                    }
                };
                images.extend(answer.embedding);
                for (hypothesis, scored) in answer.captions.into_iter().zip(&mut ways) {
                    scored.push(Scored { id: item.id.clone(), hypothesis, references: item.captions.clone() });
                    bar.inc(1);
                }
            }
            Ok::<_, Error>(())
        },
    )?;
    let row = task.row(model, &images, &text_embeddings(captioner, &task.texts().0)?, joint)?;
    let result = |(options, scored): (&DecodeOptions, Vec<Scored>)| {
        let mut scores = score(&scored)?;
        let not_run = jars.map_or(Ok(Vec::new()), |jars| scores.add_java(&scored, jars))?;
        let row = Row { beams: Some(options.beams), scores: Some(scores.corpus), ..row.clone() };
        let caption = |scored: &Scored| json!({ "image_id": scored.id, "caption": scored.hypothesis });
        Ok(BundleResult { row, captions: scored.iter().map(caption).collect(), not_run })
    };
    options.iter().zip(ways).map(result).collect()
}

/// Unit vectors (texts, J), each text as [RET] reads it, cut to the context.
fn text_embeddings(captioner: &Captioner<Candle>, texts: &[&str]) -> Result<Vec<f32>> {
    let joint = captioner.projections().config().joint_size;
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| query_ids(captioner, text)).collect::<Result<_>>()?;
    // Those of a length together: all are filled up to the longest.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&text| ids[text].len());
    let mut out = vec![0.0; ids.len() * joint];
    let mut rest = &order[..];
    while !rest.is_empty() {
        let fits = |&(count, &text): &(usize, &usize)| (count + 1) * (ids[text].len() + 1) <= ROWS;
        let count = rest.iter().enumerate().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        let batch: Vec<Vec<u32>> = now.iter().map(|&text| ids[text].clone()).collect();
        let vectors = values(&text_embedding(captioner, &batch)?)?;
        for (&text, vector) in now.iter().zip(vectors.chunks_exact(joint)) {
            out[text * joint..(text + 1) * joint].copy_from_slice(vector);
        }
        rest = later;
    }
    Ok(out)
}

/// What a bundle says of one picture.
async fn answer_of(captioner: &Captioner<Candle>, picture: &[Picture], options: &[DecodeOptions]) -> Result<Answer> {
    let features = captioner.features(picture)?;
    let embedding = captioner.image_embedding(&features).await?;
    let mut captions = Vec::with_capacity(options.len());
    for options in options {
        captions.push(captioner.caption(&features, options).await?);
    }
    Ok(Answer { embedding, captions })
}

/// Retrieval by CLIP's own two towers.
///
/// # Errors
/// An image that cannot be read; what the model answers.
pub fn clip(clip: &Clip, model: &str, task: &Task, bar: &ProgressBar) -> Result<Row> {
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    ahead(
        &task.items,
        cores(),
        |item| task.picture(item),
        |pictures| {
            loop {
                let batch: Vec<Picture> = pictures.take(BATCH).collect::<Result<_>>()?;
                if batch.is_empty() {
                    return Ok::<_, Error>(());
                }
                images.extend(values(&clip.images(&batch)?)?);
                bar.inc(batch.len() as u64);
            }
        },
    )?;
    for batch in task.texts().0.chunks(4 * BATCH) {
        texts.extend(values(&clip.texts(batch)?)?);
    }
    task.row(model, &images, &texts, clip.joint_size())
}

/// What a CLIP folder is called in the table: its own name, or that of the run that it is the `model` of.
pub fn clip_name(folder: &Path) -> String {
    let absolute = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mut names = absolute.iter().rev().map(|name| name.to_string_lossy());
    let name = match (names.next(), names.next()) {
        (Some(own), Some(run)) if own == "model" => run,
        (Some(own), _) => own,
        (None, _) => folder.to_string_lossy(),
    };
    format!("CLIP {name}")
}

/// As [`clip_name`], but those that would be called alike by their whole paths.
pub fn clip_names(folders: &[PathBuf]) -> Vec<String> {
    let names: Vec<String> = folders.iter().map(|folder| clip_name(folder)).collect();
    let alone = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    let name = |(name, folder): (&String, &PathBuf)| match alone(name) {
        true => name.clone(),
        false => format!("CLIP {}", folder.display()),
    };
    names.iter().zip(folders).map(name).collect()
}

/// The rows as a table in Markdown, its columns aligned so that it reads in a terminal, too.
pub fn markdown(rows: &[Row]) -> String {
    let head = [
        "model",
        "data",
        "images",
        "B1",
        "B2",
        "B3",
        "B4",
        "METEOR",
        "ROUGE-L",
        "CIDEr",
        "SPICE",
        "t2i R@1",
        "R@5",
        "R@10",
        "i2t R@1",
        "R@5",
        "R@10",
        "mR own-image",
        "mR same-string",
    ];
    let mut cells = vec![head.map(String::from).to_vec()];
    for row in rows {
        let beams = row.beams.filter(|&beams| beams > 1).map(|beams| format!(", beam {beams}")).unwrap_or_default();
        let part = if row.refused > 0 { "*" } else { "" };
        let mut line = vec![
            format!("{}{beams}", row.model.replace('|', "/")),
            format!("{} {}{part}", row.dataset.replace('|', "/"), row.split),
            row.images.to_string(),
        ];
        match row.scores {
            None => line.extend(std::iter::repeat_n("-".to_string(), 8)),
            Some(scores) => line.extend(
                scores.named().map(|(_, value)| value.map_or("not run".to_string(), |value| format!("{value:.3}"))),
            ),
        }
        let own = row.own_image;
        let recalls = [own.t2i_1, own.t2i_5, own.t2i_10, own.i2t_1, own.i2t_5, own.i2t_10, own.mean_recall];
        line.extend(recalls.iter().chain([&row.same_string.mean_recall]).map(|value| format!("{value:.1}")));
        cells.push(line);
    }
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (at, line) in cells.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right. Writing to a string cannot fail.
            let _ = if column < 2 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if at == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let _ = if column < 2 {
                    write!(text, "|{:-<1$}", "", width + 2)
                } else {
                    write!(text, "|{:->1$}:", "", width + 1)
                };
            }
            text.push_str("|\n");
        }
    }
    for row in rows.iter().filter(|row| row.refused > 0) {
        let (refused, dataset) = (row.refused, &row.dataset);
        let _ = write!(
            text,
            "\n\\* {dataset}: {refused} of its items could not be used; do not compare with published figures.\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recall_of(value: f64) -> Recall {
        let (t2i, i2t) = (value, value + 1.0);
        Recall { t2i_1: t2i, t2i_5: t2i, t2i_10: t2i, i2t_1: i2t, i2t_5: i2t, i2t_10: i2t, mean_recall: value + 0.5 }
    }

    #[test]
    fn the_table_says_what_was_not_run_and_what_is_a_part() {
        let scores = Scores {
            bleu_1: 0.8312,
            bleu_2: 0.76,
            bleu_3: 0.7,
            bleu_4: 0.65,
            meteor: None,
            rouge_l: 0.79,
            cider: 3.42,
            spice: Some(0.5),
        };
        let bridge = Row {
            model: "demo".into(),
            dataset: "UCM".into(),
            split: Split::Test,
            images: 210,
            captions: 1050,
            refused: 0,
            beams: Some(3),
            scores: Some(scores),
            own_image: recall_of(30.0),
            same_string: recall_of(50.0),
        };
        let clip = Row { model: "CLIP a|b".into(), beams: None, scores: None, refused: 2, ..bridge.clone() };
        let text = markdown(&[bridge, clip]);
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
        };
        assert!(lines[..4].iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
        assert_eq!(
            cells(lines[2]).join(" "),
            "demo, beam 3 UCM test 210 0.831 0.760 0.700 0.650 not run 0.790 3.420 0.500 30.0 30.0 30.0 31.0 31.0 31.0 \
             30.5 50.5"
        );
        assert_eq!(cells(lines[3])[..4], ["CLIP a/b", "UCM test*", "210", "-"]);
        assert!(text.contains("UCM: 2 of its items could not be used"), "{text}");
    }

    #[test]
    fn clips_are_called_by_names_that_differ() {
        let names = |folders: &[&str]| clip_names(&folders.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["runs/a/model", "runs/b/model", "openai/vit"]), ["CLIP a", "CLIP b", "CLIP vit"]);
        assert_eq!(names(&["x/a/model", "y/a", "model"]), ["CLIP x/a/model", "CLIP y/a", "CLIP model"]);
    }

    #[test]
    fn json_has_pycocoevalcaps_names() {
        let row = Row {
            model: "m".into(),
            dataset: "d".into(),
            split: Split::Val,
            images: 1,
            captions: 1,
            refused: 0,
            beams: None,
            scores: None,
            own_image: recall_of(1.0),
            same_string: recall_of(2.0),
        };
        let value = serde_json::to_value(&row).unwrap();
        assert_eq!(value["t2i_R@1"], 1.0);
        assert_eq!(value["same_string"]["mean_recall"], 2.5);
        assert!(value.get("Bleu_4").is_none());
    }
}

//! `rscapret score`: captions against references, without any model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::path::PathBuf;

use rscapret::{Context, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::output::{self, counted};
use crate::dataset::{DatasetConfig, ImageId, Item, Split, load, read_file};
use crate::eval::{CorpusScores, Scored, Scores, java::Jars, score};

/// Score captions against references: BLEU-1 to 4, ROUGE-L and CIDEr, as papers report them
///
/// The figures are those of pycocoevalcap (the evaluation code of COCO), tokenisation included, so they can stand
/// beside published ones. METEOR and SPICE are run by its Java programs (--jars).
///
/// The hypotheses must hold one caption for every image of the split and for no other: figures of a subset cannot be
/// compared, since CIDEr weighs each word by how many images of the whole split have it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret score results.json data/ucm/dataset.json
  rscapret score results.json captions_val2017.json --split val --json
  rscapret score results.json data/ucm/dataset.json --jars pycocoevalcap

A results file is a list with one entry for each image:
  [{\"image_id\": 80, \"caption\": \"there is a piece of farmland\"}, ...]
`image_id` is `imgid` (or `cocoid`) in Karpathy's JSON and NWPU's, `id` in COCO's, the number before the caption in
Sydney's text.")]
pub struct Args {
    /// COCO results file: [{"image_id": ..., "caption": "..."}, ...]
    pub hypotheses: PathBuf,

    /// References: JSON in Karpathy's (RSICD, UCM, Sydney), NWPU's or COCO's layout, or Sydney's text, told from the
    /// file itself
    pub references: PathBuf,

    /// Split of the references to score; a COCO file is one split and is taken to be this one
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,

    /// Folder `pycocoevalcap` with the programs of METEOR and SPICE
    #[arg(long, value_name = "FOLDER")]
    pub jars: Option<PathBuf>,

    /// Print JSON: the corpus' scores by pycocoevalcap's names, and `images` with those of each
    #[arg(long)]
    pub json: bool,

    /// Print the scores of each image too, in the order of the references (JSON always has them)
    #[arg(long)]
    pub per_image: bool,
}

/// Scores the files and prints the result.
///
/// # Errors
/// As [`score_files`]; and when standard output cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let scores = score_files(args)?;
    if args.json { output::json(&scores) } else { output::text(&table(&scores, args.per_image)) }
}

/// Reads both files and scores every image of the split, in the order of the references.
///
/// # Errors
/// When a file cannot be read or is not of its layout, when a reference is unusable, or when the hypotheses are not
/// exactly one for each image of the split; the message says which ids.
pub fn score_files(args: &Args) -> Result<CorpusScores> {
    let references = references(args)?;
    let mut captions = hypotheses(args, &references).at(args.hypotheses.display())?;
    let scored: Vec<Scored> = references
        .into_iter()
        .filter_map(|item| {
            let hypothesis = captions.remove(&item.id)?;
            Some(Scored { id: item.id, hypothesis, references: item.captions })
        })
        .collect();
    let mut scores = score(&scored)?;
    if let Some(folder) = &args.jars {
        for why in scores.add_java(&scored, &Jars::open(folder)?)? {
            eprintln!("not run: {why}");
        }
    }
    Ok(scores)
}

/// Items of the split; any that cannot be used is an error here.
fn references(args: &Args) -> Result<Vec<Item>> {
    let config = DatasetConfig {
        split: Some(args.split),
        ..DatasetConfig::captions_only("references", args.references.clone())
    };
    let (dataset, refusals) = load(&config)?;
    let path = args.references.display();
    if !refusals.list.is_empty() {
        return Err(Error::Malformed(format!("expected only usable references but found {}", refusals.first(5))))
            .at(path);
    }
    let counts = Split::ALL.map(|split| format!("{} {split}", dataset.split(split).count())).join(", ");
    let items: Vec<Item> = dataset.items.into_iter().filter(|item| item.split == args.split).collect();
    if items.is_empty() {
        let split = args.split;
        return Err(Error::Config(format!(
            "expected images of split `{split}` but found {counts}\nchoose another with --split"
        )))
        .at(path);
    }
    Ok(items)
}

#[derive(Deserialize)]
struct Hypothesis {
    image_id: ImageId,
    caption: String,
}

/// The captions by id; they cover the references exactly.
fn hypotheses(args: &Args, references: &[Item]) -> Result<BTreeMap<ImageId, String>> {
    let bytes = read_file(&args.hypotheses)?;
    let entries: Vec<Value> = serde_json::from_slice(&bytes).map_err(|error| {
        let shape = r#"[{"image_id": ..., "caption": "..."}, ...]"#;
        Error::Malformed(format!("expected a COCO results file {shape} but found {error}"))
    })?;
    let wanted: BTreeSet<&ImageId> = references.iter().map(|item| &item.id).collect();
    let (mut captions, mut unknown, mut twice) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        let entry: Hypothesis = serde_json::from_value(entry)
            .map_err(|error| Error::Malformed(format!("expected `image_id` and `caption` but found {error}")))
            .at(format!("entry {index}"))?;
        if !wanted.contains(&entry.image_id) {
            unknown.push(entry.image_id);
        } else if let Some(_earlier) = captions.insert(entry.image_id.clone(), entry.caption) {
            twice.push(entry.image_id);
        }
    }
    let missing: Vec<&ImageId> = wanted.into_iter().filter(|id| !captions.contains_key(id)).collect();
    let (split, count) = (args.split, references.len());
    let problem = |what: String, remedy: &str| Err(Error::Config(format!("{what}\n{remedy}")));
    if !unknown.is_empty() {
        let what = format!("expected only ids of the {count} images of split `{split}` but found {}", some(&unknown));
        return problem(what, "choose their split with --split, or the references that they belong to");
    }
    if !twice.is_empty() {
        return problem(
            format!("expected one caption an image but found more for {}", some(&twice)),
            "keep one of them",
        );
    }
    if !missing.is_empty() {
        return problem(
            format!("expected captions of all {count} images of split `{split}` but found none for {}", some(&missing)),
            "caption the whole split: figures of a subset cannot be compared",
        );
    }
    Ok(captions)
}

/// How many ids, and the first ten of them.
fn some(ids: &[impl Display]) -> String {
    let shown: Vec<String> = ids.iter().take(10).map(ToString::to_string).collect();
    let more = if ids.len() > shown.len() { ", …" } else { "" };
    format!("{}: {}{more}", ids.len(), shown.join(", "))
}

/// What a person reads.
fn table(scores: &CorpusScores, per_image: bool) -> String {
    let value = |value: Option<f64>| value.map_or("not run".to_string(), |value| format!("{value:.4}"));
    let mut text = counted(scores.images.len(), "image") + "\n";
    // Writing to a string cannot fail.
    for (name, score) in scores.corpus.named() {
        let _ = writeln!(text, "{name:<8} {:>8}", value(score));
    }
    if per_image {
        let ran = |scores: &Scores| scores.named().into_iter().filter_map(|(name, score)| Some((name, score?)));
        let ids: Vec<String> = scores.images.iter().map(|image| image.image_id.to_string()).collect();
        let width = ids.iter().map(|id| id.chars().count()).max().unwrap_or(0).max("image_id".len());
        let _ = write!(text, "\n{:<width$}", "image_id");
        ran(&scores.corpus).for_each(|(name, _)| text += &format!(" {name:>8}"));
        for (id, image) in ids.iter().zip(&scores.images) {
            let _ = write!(text, "\n{id:<width$}");
            ran(&image.scores).for_each(|(_, score)| text += &format!(" {score:>8.4}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_aligns_and_says_what_was_not_run() {
        let scored = |id: u64, text: &str| Scored {
            id: ImageId::Number(id),
            hypothesis: text.to_string(),
            references: vec![text.to_string()],
        };
        let scores = score(&[scored(7, "a b c d"), scored(80, "e f g h")]).unwrap();
        assert_eq!(
            table(&scores, true),
            "2 images\n\
             Bleu_1     1.0000\n\
             Bleu_2     1.0000\n\
             Bleu_3     1.0000\n\
             Bleu_4     1.0000\n\
             METEOR    not run\n\
             ROUGE_L    1.0000\n\
             CIDEr     10.0000\n\
             SPICE     not run\n\
             \n\
             image_id   Bleu_1   Bleu_2   Bleu_3   Bleu_4  ROUGE_L    CIDEr\n\
             7          1.0000   1.0000   1.0000   1.0000   1.0000  10.0000\n\
             80         1.0000   1.0000   1.0000   1.0000   1.0000  10.0000"
        );
    }

    #[test]
    fn arguments() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let parse = |words: &str| <Cli as clap::Parser>::try_parse_from(words.split(' '));
        let plain = parse("score h.json r.json").unwrap_or_else(|error| panic!("{error}")).args;
        assert_eq!((plain.split, plain.json, plain.per_image), (Split::Test, false, false));
        let val = parse("score h.json r.json --split val --json").unwrap_or_else(|error| panic!("{error}")).args;
        assert_eq!((val.split, val.json), (Split::Val, true));
        let refused = parse("score h.json r.json --split dev").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("[possible values: train, val, test]"), "{refused}");
        assert!(parse("score h.json").is_err());
    }

    #[test]
    fn long_lists_of_ids_are_cut() {
        assert_eq!(some(&[4, 5]), "2: 4, 5");
        assert_eq!(some(&(0..12).collect::<Vec<_>>()), "12: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …");
    }
}

//! `rscapret data`: datasets before they are trained on.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use rscapret::Result;

use super::output;
use crate::{
    dataset::{
        Split,
        check::{Check, Checked, check},
        read_datasets,
    },
    progress,
};

/// Refusals of a dataset, and images on both sides, that are shown unless all are asked for.
const SHOWN: usize = 10;

/// Look at datasets before they are trained on
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret data check trainer/configs/demo.toml
  rscapret data check trainer/configs/eval-ucm.toml --json")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done with datasets.
#[derive(Debug, Clone, clap::Subcommand)]
#[allow(missing_docs)] // each one's text is that of its `Args`
pub enum Command {
    Check(CheckArgs),
}

/// Count what is in the datasets of a configuration, list what cannot be used, find what train and test share
///
/// Every image is opened and decoded. Counts are compared with those that the authors of RSICD, UCM-Captions,
/// Sydney-Captions and NWPU-Captions published. Images are compared by the SHA-256 of their files and captions letter by
/// letter, across all datasets of the configuration. When more of a dataset is refused than its `max_refused` allows,
/// the exit code is 2.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "A dataset is a TOML table:
  name = \"UCM\"                     # what reports call it
  annotations = \"ucm/dataset.json\" # Karpathy's JSON, NWPU's, COCO's; Sydney's text; .csv, .tsv, .jsonl of your own
  images = \"ucm/images\"            # absent: captions only
  extension = \"jpg\"                # if files are named otherwise than in the annotations
  split = \"val\"                    # if the annotations do not say
  max_refused = 0.1                # share of items that may be unusable, 0 if absent

The configuration is one such table, several under [[dataset]], or the configuration of a training stage. A table of
your own has a row for each caption (or image) with the columns file_name, caption and split; as JSON Lines a caption
may be a list, too.

Examples:
  rscapret data check trainer/configs/demo.toml
  rscapret data check trainer/configs/eval-ucm.toml --json")]
pub struct CheckArgs {
    /// Configuration, TOML
    pub config: PathBuf,

    /// Do not open the images: counts and captions only
    #[arg(long)]
    pub skip_images: bool,

    /// List everything that was refused or is shared, not the first ten only (JSON always does)
    #[arg(long)]
    pub all: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints what was found; exit code 2 when too much is unusable.
///
/// # Errors
/// A configuration or annotations that cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let configs = read_datasets(&args.config)?;
    let bar = progress::count("images opened");
    let found = check(&configs, !args.skip_images, || bar.inc(1));
    bar.finish_and_clear();
    let found = found?;
    if args.json {
        output::json(&found)?;
    } else {
        output::text(&report(&found, if args.all { usize::MAX } else { SHOWN }))?;
    }
    let failed = found.datasets.iter().any(|dataset| dataset.too_many);
    Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// What a person reads. Writing to a string cannot fail.
fn report(found: &Check, most: usize) -> String {
    let mut text = String::new();
    for dataset in &found.datasets {
        describe(dataset, most, &mut text);
        text.push('\n');
    }
    text += "shared by train and test\n";
    match &found.shared_images {
        None => text += "  images: not opened\n",
        Some(shared) if shared.is_empty() => text += "  images: none\n",
        Some(shared) => {
            let _ = writeln!(text, "  images: {} of the test split", shared.len());
            let lines = shared.iter().map(|image| format!("{} is {}", image.test, image.train));
            list(lines.collect(), most, &mut text);
        }
    }
    let captions = &found.shared_captions;
    let (distinct, test) = (captions.distinct, captions.test_captions);
    let _ = match distinct {
        0 => writeln!(text, "  captions: none"),
        _ => {
            writeln!(text, "  captions: {distinct} different ones, which are {test} of the {} for testing", captions.of)
        }
    };
    text
}

fn describe(dataset: &Checked, most: usize, text: &mut String) {
    let _ = writeln!(text, "{}: {}", dataset.name, dataset.annotations.display());
    let _ = writeln!(text, "  {:<8} {:>8} {:>9} {:>9} {:>10}", "split", "images", "captions", "distinct", "published");
    let number = |n: Option<usize>| n.map_or_else(|| "-".to_string(), |n| n.to_string());
    let published = |at: usize| dataset.published.map(|published| published.images[at]);
    for (at, split) in Split::ALL.into_iter().enumerate() {
        let counts = dataset.splits[at];
        let _ = writeln!(
            text,
            "  {split:<8} {:>8} {:>9} {:>9} {:>10}",
            counts.images,
            counts.captions,
            counts.distinct,
            number(published(at))
        );
    }
    let captions: usize = dataset.splits.iter().map(|split| split.captions).sum();
    match dataset.published {
        None => {}
        Some(published)
            if published.images == dataset.splits.map(|split| split.images) && published.captions == captions =>
        {
            text.push_str("  as published\n");
        }
        Some(published) => {
            let _ = writeln!(text, "  not as published: {captions} captions of {}", published.captions);
        }
    }
    if dataset.refusals.is_empty() {
        text.push_str("  nothing refused\n");
        return;
    }
    let kinds: Vec<String> = dataset.refused.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let (refused, seen) = (dataset.refused_items, dataset.seen);
    let share = 100.0 * refused as f64 / seen.max(1) as f64;
    let _ = writeln!(text, "  {refused} of {seen} items refused ({share:.1} %): {}", kinds.join(", "));
    list(dataset.refusals.clone(), most, text);
    if dataset.too_many {
        let most = 100.0 * dataset.max_refused;
        let _ = writeln!(text, "  TOO MANY: at most {most:.1} % may be refused (`max_refused`), and some must be left");
    }
}

fn list(lines: Vec<String>, most: usize, text: &mut String) {
    for line in lines.iter().take(most) {
        let _ = writeln!(text, "    {}", output::printable(line));
    }
    if lines.len() > most {
        let _ = writeln!(text, "    and {} more: --all lists them", lines.len() - most);
    }
}

//! `rscapret search`: images of an index by a sentence or by an image.

use std::path::PathBuf;

use pollster::block_on;
use rscapret::{Backend, Context, Result, caption::Captioner, retrieval::RetrievalIndex};
use serde::Serialize;

use super::{
    bundle::{BundleArgs, image_embedding, with_captioner},
    output::{self, printable},
    values::{at_least_one, words},
};
use crate::files::{read_manifest, read_whole};

/// Most bytes of an index: some ten million images.
pub(super) const MAX_INDEX: u64 = 16 << 30;

/// Find the images of an index that fit a sentence or an image best
///
/// Names are those of the indexed folder; scores are cosines, 1 is the best possible.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret search album.idx \"planes parked at an airport\" --top 5
  rscapret search album.idx --image photo.jpg --json")]
pub struct Args {
    /// What `rscapret index` wrote
    #[arg(value_name = "FILE")]
    pub index: PathBuf,

    /// What to look for, in words
    #[arg(value_parser = words, required_unless_present = "image", conflicts_with = "image")]
    pub sentence: Option<String>,

    /// Look for images like this one
    #[arg(long)]
    pub image: Option<PathBuf>,

    /// How many to show, best first
    #[arg(long, value_name = "K", value_parser = at_least_one, allow_negative_numbers = true, default_value_t = 10)]
    pub top: usize,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bundle: BundleArgs,

    /// Print JSON: [{"image", "score"}]
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Found<'a> {
    image: &'a str,
    score: f32,
}

/// Prints the best images.
///
/// # Errors
/// An index that is damaged or another bundle's; a bundle or an image that cannot be used.
pub fn run(args: &Args) -> Result<()> {
    let index = RetrievalIndex::load(&read_whole(&args.index, MAX_INDEX)?).at(args.index.display())?;
    // Before the weights are loaded.
    let (_, id) = read_manifest(args.bundle.folder()?)?;
    index.expect_bundle(&id).at(args.index.display())?;
    let query = with_captioner!(args.bundle, |captioner| query(args, &captioner))?;
    let found: Vec<Found> =
        index.top_k(&query, args.top)?.into_iter().map(|hit| Found { image: hit.id, score: hit.score }).collect();
    if args.json {
        return output::json(&found);
    }
    let line = |found: &Found| format!("{:>7.4}  {}\n", found.score, printable(found.image));
    output::text(&found.iter().map(line).collect::<String>())
}

/// What is looked for, in the joint space.
fn query<B: Backend>(args: &Args, captioner: &Captioner<B>) -> Result<Vec<f32>> {
    match &args.image {
        Some(path) => image_embedding(captioner, path),
        None => block_on(captioner.text_embedding(args.sentence.as_deref().unwrap_or_default())),
    }
}

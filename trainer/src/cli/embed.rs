//! `rscapret embed`: an image or a text as a vector of the joint space.

use std::path::PathBuf;

use pollster::block_on;
use rscapret::{Backend, Result, caption::Captioner};
use serde::Serialize;

use super::{
    bundle::{BundleArgs, image_embedding, with_captioner},
    output,
    values::words,
};

/// Values on a line.
const COLUMNS: usize = 8;

/// Show an image or a text as a vector in the space where both can be compared
///
/// Vectors have length 1: the sum of the products of two is the cosine that `search` shows.
#[derive(Debug, Clone, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["image", "text"]),
    after_long_help = "Examples:
  rscapret embed --bundle models/demo --text \"many boats in a harbour\"
  rscapret embed --bundle models/demo --image photo.jpg --json"
)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub bundle: BundleArgs,

    /// The image
    #[arg(long)]
    pub image: Option<PathBuf>,

    /// The text
    #[arg(long, value_parser = words)]
    pub text: Option<String>,

    /// Print JSON: {"embedding": [...]}
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Embedded {
    embedding: Vec<f32>,
}

/// Prints the vector.
///
/// # Errors
/// A bundle or an image that cannot be used, a text longer than the context.
pub fn run(args: &Args) -> Result<()> {
    let embedding = with_captioner!(args.bundle, |captioner| embed(args, &captioner))?;
    if args.json {
        return output::text(&output::json_line(&Embedded { embedding })?);
    }
    let line = |values: &[f32]| values.iter().map(|value| format!("{value:>10.6}")).collect::<String>() + "\n";
    output::text(&embedding.chunks(COLUMNS).map(line).collect::<String>())
}

fn embed<B: Backend>(args: &Args, captioner: &Captioner<B>) -> Result<Vec<f32>> {
    match &args.image {
        Some(path) => image_embedding(captioner, path),
        None => block_on(captioner.text_embedding(args.text.as_deref().unwrap_or_default())),
    }
}

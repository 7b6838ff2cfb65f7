//! `rscapret caption`: images to sentences.

use std::{path::PathBuf, str::FromStr};

use pollster::block_on;
use rscapret::{
    Backend, Result,
    caption::{Captioner, DecodeOptions},
};
use serde::Serialize;

use super::{
    bundle::{BundleArgs, Refused, picture, with_captioner},
    output::{self, printable},
    values::seed,
};
use crate::progress;

/// Describe images in a sentence each
///
/// Takes the likeliest word each time, unless told to search (--beam) or to draw (--temperature). A file that is no
/// readable image is named on standard error, the others are captioned, and the exit code is 1.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret caption photo.jpg
  rscapret caption photos/*.tif --bundle my-bundle --json
  rscapret caption photo.jpg --device auto                             on a GPU if there is one
  rscapret caption photo.jpg --beam 4                                  several candidates at once, the best one wins
  rscapret caption photo.jpg --temperature 0.8 --top-p 0.9 --seed 7    by chance, the same each time")]
pub struct Args {
    /// JPEG, PNG, WebP or TIFF files
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bundle: BundleArgs,

    /// Beam search with N beams: slower, likelier sentences
    #[arg(long, value_name = "N", value_parser = beams, allow_negative_numbers = true,
        conflicts_with_all = ["temperature", "top_p", "seed"])]
    pub beam: Option<usize>,

    /// With --beam: above 1 favours longer captions, below 1 shorter ones [default: 1]
    #[arg(long, value_name = "P", value_parser = length_penalty, requires = "beam", allow_negative_numbers = true)]
    pub length_penalty: Option<f32>,

    /// Draw words by chance: 1 takes the model's own probabilities, less is bolder, 0 always takes the likeliest
    /// [default: 1 with --top-p or --seed, else 0]
    #[arg(long, value_name = "T", value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: Option<f32>,

    /// Draw only from the likeliest words that together reach this probability [default: 1]
    #[arg(long, value_name = "P", value_parser = top_p, allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Seed of the chance: the same seed gives the same caption [default: 0]
    #[arg(long, value_name = "S", value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,

    /// Most tokens of a caption
    #[arg(long, value_name = "N", value_parser = max_tokens, allow_negative_numbers = true,
        default_value_t = DecodeOptions::default().max_tokens)]
    pub max_tokens: usize,

    /// Print JSON: [{"image", "caption"}]
    #[arg(long)]
    pub json: bool,
}

// Kinds of values.
const COUNT: &str = "a whole number of 1 or more";
const NUMBER: &str = "a number";

/// A value that [`DecodeOptions::check`] accepts in its place.
fn option<T: FromStr + Copy>(text: &str, kind: &str, set: fn(&mut DecodeOptions, T)) -> Result<T, String> {
    let value = text.parse().map_err(|_| format!("expected {kind} but found `{text}`"))?;
    let mut options = DecodeOptions::default();
    set(&mut options, value);
    options.check().map(|()| value).map_err(|error| error.to_string())
}

pub(super) fn beams(text: &str) -> Result<usize, String> {
    option(text, COUNT, |options, value| options.beams = value)
}

fn length_penalty(text: &str) -> Result<f32, String> {
    option(text, NUMBER, |options, value| options.length_penalty = value)
}

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    option(text, NUMBER, |options, value| options.temperature = value)
}

fn top_p(text: &str) -> Result<f32, String> {
    option(text, NUMBER, |options, value| options.top_p = value)
}

pub(super) fn max_tokens(text: &str) -> Result<usize, String> {
    option(text, COUNT, |options, value| options.max_tokens = value)
}

impl Args {
    /// What the library is asked for.
    pub fn options(&self) -> DecodeOptions {
        let default = DecodeOptions::default();
        let by_chance = self.top_p.is_some() || self.seed.is_some();
        DecodeOptions {
            max_tokens: self.max_tokens,
            beams: self.beam.unwrap_or(default.beams),
            length_penalty: self.length_penalty.unwrap_or(default.length_penalty),
            temperature: self.temperature.unwrap_or(if by_chance { 1.0 } else { default.temperature }),
            top_p: self.top_p.unwrap_or(default.top_p),
            seed: self.seed.unwrap_or(default.seed),
        }
    }
}

#[derive(Serialize)]
struct Captioned {
    image: String,
    caption: String,
}

/// Captions the images, in order.
///
/// # Errors
/// A bundle that cannot be used; at the end, images that could not be read.
pub fn run(args: &Args) -> Result<()> {
    with_captioner!(args.bundle, |captioner| caption(args, &captioner))
}

fn caption<B: Backend>(args: &Args, captioner: &Captioner<B>) -> Result<()> {
    let options = args.options();
    let bar = progress::bar(args.images.len(), "captions");
    let (mut refused, mut captions) = (Refused::default(), Vec::new());
    for path in &args.images {
        match picture(path) {
            Ok(picture) => {
                let caption = block_on(captioner.caption(&captioner.features(&[picture])?, &options))?;
                let image = path.display().to_string();
                if args.json {
                    captions.push(Captioned { image, caption });
                } else {
                    bar.suspend(|| output::text(&format!("{}: {}", printable(&image), printable(&caption))))?;
                }
            }
            Err(error) => refused.add(&bar, &error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        output::json(&captions)?;
    }
    refused.finish(args.images.len())
}

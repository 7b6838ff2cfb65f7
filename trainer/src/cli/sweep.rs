//! `rscapret sweep`.

use std::path::PathBuf;

use rscapret::Result;

use super::{DeviceArgs, output};
use crate::{evaluate::markdown, run_dir::read_config, sweep};

/// Train and score variants of one configuration: how many visual tokens, which CLIP, which language model, which data
///
/// Every variant has its run in a folder of its own, is trained or goes on where it was interrupted, and is scored as
/// `rscapret eval` does; what its model said of an image is kept there until all are scored. results.md is the table of all, results.svg its plot, results.json both for scripts.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Example:
  rscapret sweep trainer/configs/sweep-visual-tokens.toml --out runs/sweep-k")]
pub struct Args {
    /// Configuration, TOML: base, eval and [[variant]]s
    pub config: PathBuf,

    /// Folder of the variants' runs and the results
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// # Errors
/// What training and scoring say, after the name of the variant.
pub fn run(args: &Args) -> Result<()> {
    let backend = args.device.open()?;
    let config: sweep::Config = read_config(&args.config)?;
    output::text(&markdown(&sweep::run(&config, &args.out, &backend)?))
}

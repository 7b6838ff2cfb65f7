//! `rscapret pretrain-clip`.

use std::path::PathBuf;

use rscapret::Result;

use super::DeviceArgs;
use crate::{
    pretrain::clip,
    run_dir::{RunDir, read_config},
};

/// Train a small CLIP from nothing on pairs of images and captions
///
/// For where the published towers are too large: the demo's encoder was made so. The run's folder holds the
/// configuration, metrics.jsonl, a checkpoint every two minutes and at the end `model/`, a Hugging Face CLIP folder.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  rscapret pretrain-clip trainer/configs/demo-clip.toml --run runs/demo-clip\n\n\
    A table of the TOML that may be left out:\n  \
    [captioning]          a loss of captions beside the contrast, by a frozen language model\n  \
    llm                   a Hugging Face folder or a GGUF\n  \
    weight                of the caption's cross-entropy\n  \
    visual_tokens = 1     of an image, by a map that is not kept\n  \
    max_length = 64       longest caption, tokens\n\n\
    Workers are threads that share each batch. On a CPU set RAYON_NUM_THREADS=1 beside `workers`, so that \
    each works alone.")]
pub struct Args {
    /// Configuration, TOML
    pub config: PathBuf,
    /// Folder of the run
    #[arg(long)]
    pub run: PathBuf,
    /// Continue the run in that folder from its checkpoint
    #[arg(long)]
    pub resume: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// # Errors
/// What the stage says.
pub fn run(args: &Args) -> Result<()> {
    let backend = args.device.open()?;
    let config: clip::Config = read_config(&args.config)?;
    clip::run(&config, &RunDir::open(&args.run, &config, args.resume)?, &backend)
}

//! `rscapret pretrain-lm`.

use std::path::PathBuf;

use rscapret::Result;

use super::DeviceArgs;
use crate::{
    pretrain::lm,
    run_dir::{RunDir, read_config},
};

/// Train a byte-level BPE vocabulary and a small Llama from nothing on caption text
///
/// For where published language models are too large: the demo's was made so. The run's folder holds the
/// configuration, metrics.jsonl, a checkpoint every two minutes and at the end `model/`, a Hugging Face Llama folder.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  rscapret pretrain-lm trainer/configs/demo-lm.toml --run runs/demo-lm\n\n\
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
    let config: lm::Config = read_config(&args.config)?;
    lm::run(&config, &RunDir::open(&args.run, &config, args.resume)?, &backend)
}

//! `rscapret clip`: CLIP itself, before it is frozen.

use std::path::PathBuf;

use rscapret::Result;

use super::DeviceArgs;
use crate::{
    clip_finetune, hub,
    parallel::{self, GpusArgs, first_then_others},
    run_dir::{RunDir, read_config},
};

/// Train CLIP itself, before it is frozen
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Example:
  rscapret clip finetune trainer/configs/clip-cap4.toml --run runs/clip-cap4")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done with a CLIP.
#[derive(Debug, Clone, clap::Subcommand)]
#[allow(missing_docs)] // each one's text is that of its `Args`
pub enum Command {
    Finetune(FinetuneArgs),
}

/// Go on with the contrastive training of a published CLIP, on image and caption pairs of one's own
///
/// Both towers learn, one random caption of an image a step. All pairs of a batch are one another's negatives, but for
/// captions of the same text; how many go through the towers at once (micro_batch) changes the memory and not the result.
/// The run's folder gets `model`, a Hugging Face folder of the weights that validated best.
///
/// The configuration's `clip` is a Hugging Face folder, a checkpoint of OpenCLIP or RemoteCLIP (safetensors or .pt; with
/// open_clip_config.json beside it if there is one, and CLIP's tokenizer.json), or a model's name on the Hugging Face Hub,
/// such as openai/clip-vit-large-patch14.
///
/// With --gpus N there are `workers` in each of N processes; `batch` is that of all together, all of it are negatives, and the
/// result is that of N times the workers in one process.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Example:
  rscapret clip finetune trainer/configs/clip-cap4.toml --run runs/clip-cap4")]
pub struct FinetuneArgs {
    /// Configuration, TOML
    pub config: PathBuf,
    /// Folder of the run
    #[arg(long)]
    pub run: PathBuf,
    /// Continue the run in that folder from its checkpoint
    #[arg(long)]
    pub resume: bool,
    /// In how many processes.
    #[command(flatten)]
    pub gpus: GpusArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// # Errors
/// What the stage says.
pub fn run(args: &Args) -> Result<()> {
    let Command::Finetune(args) = &args.command;
    parallel::run(args.gpus.gpus, |group| {
        let backend = args.device.open_in(group)?;
        let config: clip_finetune::Config = read_config(&args.config)?;
        let run = RunDir::shared(group, &args.run, &config, args.resume)?;
        let clip = first_then_others(group, || hub::clip(&config.clip))?;
        clip_finetune::run_in(&clip_finetune::Config { clip, ..config }, &run, &backend, group)
    })
}

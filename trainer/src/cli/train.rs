//! `rscapret train`.

use std::path::PathBuf;

use rscapret::Result;

use crate::{
    bridge, hub,
    run_dir::{RunDir, read_config},
};

/// Train RS-CapRet's bridge: the linear maps and [RET], between a frozen CLIP and a frozen Llama
///
/// The run's folder holds the configuration, metrics.jsonl, a checkpoint every two minutes and at the end
/// projections.safetensors, which `rscapret export` puts into a bundle.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  rscapret train trainer/configs/demo.toml --run runs/demo\n\n\
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
}

/// # Errors
/// What the stage says.
pub fn run(args: &Args) -> Result<()> {
    let config: bridge::Config = read_config(&args.config)?;
    // The folder keeps the names that the models have.
    let run = RunDir::open(&args.run, &config, args.resume)?;
    bridge::run(&hub::local(&config)?, &run)
}

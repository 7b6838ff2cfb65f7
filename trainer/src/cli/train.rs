//! `rscapret train`.

use std::path::PathBuf;

use rscapret::Result;

use super::DeviceArgs;
use crate::{
    bridge, hub,
    run_dir::{RunDir, read_config},
};

/// Train RS-CapRet's bridge: the linear maps and [RET], between a frozen CLIP and a frozen Llama
///
/// The run's folder holds the configuration, what data it was begun on, metrics.jsonl, a checkpoint every two minutes and at
/// the end projections.safetensors, which `rscapret export` puts into a bundle. The language model is a Hugging Face
/// folder, in shards or not, or a GGUF, which stays as quantised as it is.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  rscapret train trainer/configs/demo.toml --run runs/demo\n\n\
    Keys of the TOML that may be left out, with FROMAGe's defaults:\n  \
    concatenate = 0.5     share of the pairs that are captioned two in one sequence\n  \
    hidden_layer          layer that [RET] is read from, 1 to L; absent, the last after the final norm\n  \
    rescale_ret = true    bring [RET]'s input row to the mean norm of the embedding rows\n  \
    lambda_ret = 0.0      weight of the cross-entropy that teaches to emit [RET], by an output row of its own\n  \
    prompt = ''           text between an image and its caption\n\n\
    Keys that bound the memory, above all on a GPU (--device cuda):\n  \
    micro_batch           pairs that go through the language model at once; the result stays that of the whole batch\n  \
    training.compute = 'bf16'   frozen weights and activations in half of the memory; what is trained stays f32\n  \
    llm_weights = 'bf16'  unpack a GGUF once, which is faster and takes more memory; absent, its blocks stay\n\n\
    Workers are threads that share each batch; a GPU has one. On a CPU set RAYON_NUM_THREADS=1 beside `workers`, so that \
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
    let config: bridge::Config = read_config(&args.config)?;
    // The folder keeps the names that the models have.
    let run = RunDir::open(&args.run, &config, args.resume)?;
    bridge::run(&hub::local(&config)?, &run, &backend)
}

//! `rscapret train`.

use std::path::PathBuf;

use rscapret::Result;

use super::DeviceArgs;
use crate::{
    bridge, hub,
    parallel::{self, GpusArgs, first_then_others},
    run_dir::{RunDir, read_config},
};

/// Train RS-CapRet's bridge: the linear maps and [RET], between a frozen CLIP and a frozen Llama
///
/// The run's folder holds the configuration, what data it was begun on, metrics.jsonl, a checkpoint every two minutes and at
/// the end projections.safetensors, which `rscapret export` puts into a bundle. The language model is a Hugging Face
/// folder, in shards or not, or a GGUF, which stays as quantised as it is.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  rscapret train trainer/configs/demo.toml --run runs/demo\n  \
    rscapret train trainer/configs/demo.toml --run runs/demo --gpus 2\n\n\
    Keys of the TOML that may be left out, with FROMAGe's defaults:\n  \
    image_feature = 'class'  a caption is made from the class token, or from 'patches' of the second-to-last layer\n  \
    patch_grid            with 'patches': averaged to so many a side; it divides the tower's (16 of ViT-L/14)\n  \
    visual_tokens = 1     k of an image, or of each of patch_grid patch_grid vectors\n  \
    joint_size = 256      of the space that images and texts are compared in\n  \
    lambda_c = 1.0        weight of the caption's cross-entropy\n  \
    lambda_r = 1.0        weight of each direction's contrast\n  \
    same_string = 'masked'  equal captions of a batch are no negatives, or 'positive'\n  \
    feature_noise = 0.0   noise on features\n  \
    label_smoothing = 0.0 of the caption's cross-entropy\n  \
    max_length = 64       longest caption, tokens\n  \
    training.batch = 180, [optim]: AdamW 3e-4, betas 0.9 and 0.95, eps 1e-8, no decay, gradients clipped to 1\n  \
    [schedule]            warmup = 100, shape = 'step' (a tenth), every = 2000\n  \
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
    parallel::run(args.gpus.gpus, |group| {
        let backend = args.device.open_in(group)?;
        let config: bridge::Config = read_config(&args.config)?;
        // The folder keeps the names that the models have.
        let run = RunDir::shared(group, &args.run, &config, args.resume)?;
        let config = first_then_others(group, || hub::local(&config))?;
        bridge::run_in(&config, &run, &backend, group)
    })
}

//! `rscapret export`.

use std::path::{Path, PathBuf};

use rscapret::{
    Candle, Context, Error, Result,
    bundle::{Bundle, FORMAT_VERSION, FileEntry, Files, Licence, MANIFEST, Training},
    clip::{ClipConfig, preprocess::PreprocessConfig, vision_gguf},
    llama::{LlamaConfig, llama_gguf, vocab_from_json},
    projection::{LLM_SHA256, VISION_SHA256},
    weights::{
        Dtype, TensorSource,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};

use crate::{
    bridge,
    files::{FileSource, clip::ClipFiles, open_bundle, read_whole},
    hub,
    run_dir::{commit, read_config, write_whole},
};

/// Largest JSON that belongs to a model, bytes.
const MAX_JSON: u64 = 64 << 20;

/// Write a run's models as a bundle: a folder that the page and the other commands load
///
/// llm.gguf and vision.gguf in the asked type, projections.safetensors with the digests of both, and bundle.json with
/// every file's size and digest, the training configuration and the commit. The bundle is opened again before the
/// command ends.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  rscapret export runs/demo --out models/demo --name demo --terms trainer/configs/demo-terms.json"
)]
pub struct Args {
    /// Folder of a `rscapret train` run
    pub run: PathBuf,
    /// Folder of the bundle
    #[arg(long)]
    pub out: PathBuf,
    /// Name of the bundle
    #[arg(long, default_value = "bundle")]
    pub name: String,
    /// Type of the matrices
    #[arg(long, value_enum, default_value = "q8-0")]
    pub dtype: Type,
    /// Terms of use of the data and the models: JSON, `[{"part": ..., "terms": ...}]`
    #[arg(long)]
    pub terms: PathBuf,
    /// A sentence or two for whoever opens the bundle
    #[arg(long, default_value = "")]
    pub notes: String,
}

/// Types that matrices are exported in.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Type {
    F32,
    F16,
    #[value(name = "q8-0")]
    Q8_0,
    #[value(name = "q4-0")]
    Q4_0,
}

impl Type {
    fn dtype(self) -> Dtype {
        match self {
            Type::F32 => Dtype::F32,
            Type::F16 => Dtype::F16,
            Type::Q8_0 => Dtype::Q8_0,
            Type::Q4_0 => Dtype::Q4_0,
        }
    }
}

/// # Errors
/// A run that is not finished, a model that cannot be written.
pub fn run(args: &Args) -> Result<()> {
    pollster::block_on(export(args))
}

async fn export(args: &Args) -> Result<()> {
    let written: bridge::Config = read_config(&args.run.join("config.toml"))?;
    let trained = args.run.join("projections.safetensors");
    if !trained.exists() {
        return Err(Error::Config(
            "expected a finished run but found no projections.safetensors\nfinish it with `rscapret train --resume`"
                .into(),
        ))
        .at(args.run.display());
    }
    let licences: Vec<Licence> = serde_json::from_slice(&read_whole(&args.terms, MAX_JSON)?)
        .map_err(|e| Error::Malformed(format!("expected a list of terms but found: {e}")))
        .at(args.terms.display())?;
    let dtype = args.dtype.dtype();
    let config = hub::local(&written)?;

    let json = |folder: &Path, name: &str| read_whole(&folder.join(name), MAX_JSON);
    let tensors =
        async |folder: &Path| SafetensorsFile::open(FileSource::open(folder.join("model.safetensors"))?).await;
    let llama = LlamaConfig::from_json(&json(&config.llm, "config.json")?)?;
    let mut vocab = vocab_from_json(&json(&config.llm, "tokenizer.json")?)?;
    vocab.add_bos = Some(true);
    let llm = llama_gguf(&args.name, &llama, &vocab, &tensors(&config.llm).await?, dtype).await?.to_bytes()?;

    let files = ClipFiles::open(&config.clip)?;
    let clip = ClipConfig::from_json(&files.config_json).at(config.clip.display())?;
    let preprocess = PreprocessConfig::from_json(&String::from_utf8_lossy(&files.preprocessor_json))?;
    let vision = vision_gguf(&args.name, &clip.vision_config, &preprocess, &files.weights, dtype).await?.to_bytes()?;

    let (llm_entry, vision_entry) = (FileEntry::of("llm.gguf", &llm), FileEntry::of("vision.gguf", &vision));
    let source = SafetensorsFile::open(FileSource::open(&trained)?).await?;
    let mut maps = std::collections::BTreeMap::new();
    for info in source.tensors() {
        maps.insert(info.name.clone(), source.fetch(&info.name).await?);
    }
    let metadata =
        [(LLM_SHA256.to_string(), llm_entry.sha256.clone()), (VISION_SHA256.to_string(), vision_entry.sha256.clone())];
    let mut projections = Vec::new();
    write_safetensors(&maps, &metadata.into(), &mut projections)?;

    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: args.name.clone(),
        files: Files {
            llm: llm_entry,
            vision: vision_entry,
            projections: FileEntry::of("projections.safetensors", &projections),
        },
        licences,
        training: Training {
            config: toml::to_string_pretty(&written).map_err(|e| Error::Config(e.to_string()))?,
            data: config.data.iter().map(|source| format!("{} (train)", source.dataset.name)).collect(),
            commit: commit(),
        },
        notes: args.notes.clone(),
    };
    for (name, bytes) in [("llm.gguf", &llm), ("vision.gguf", &vision), ("projections.safetensors", &projections)] {
        write_whole(&args.out.join(name), bytes)?;
    }
    write_whole(&args.out.join(MANIFEST), &manifest.to_json()?)?;

    // Whoever gets the bundle opens it so.
    let bundle = open_bundle(&args.out)?;
    rscapret::caption::Captioner::load(
        Candle::cpu(),
        &bundle.manifest,
        &bundle.id,
        bundle.llm,
        bundle.vision,
        bundle.projections,
    )
    .await
    .at(args.out.display())?;
    let total = llm.len() + vision.len() + projections.len();
    println!("{}: {:.1} MB, {} of trained maps", args.out.display(), total as f64 / 1e6, projections.len());
    Ok(())
}

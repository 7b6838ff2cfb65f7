//! `rscapret export`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

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
    files::{
        FileSource,
        clip::ClipFiles,
        copy_atomic, describe,
        hugging_face::{HuggingFaceWeights, read_json},
        link, open_bundle, read_whole,
    },
    hub,
    run_dir::{commit, read_config, write_whole},
};

/// Largest file of terms, bytes.
const MAX_TERMS: u64 = 64 << 20;

// Names in the bundle.
const LLM: &str = "llm.gguf";
const VISION: &str = "vision.gguf";
const PROJECTIONS: &str = "projections.safetensors";

/// Write a run's models as a bundle: a folder that the page and the other commands load
///
/// llm.gguf and vision.gguf in the asked type (an `llm` that is a GGUF is taken as it is, byte for byte),
/// projections.safetensors with the digests of both, and bundle.json with every file's size and digest, the training
/// configuration and the commit. The bundle is opened again before the command ends.
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
    /// Link an `llm` that is a GGUF into the bundle instead of copying it; both must lie on one file system
    #[arg(long)]
    pub link: bool,
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
    let saved = args.run.join("config.toml");
    if !saved.exists() {
        return Err(Error::Config(
            "expected the folder of a run but found no config.toml\nname the one that `rscapret train` was given"
                .into(),
        ))
        .at(args.run.display());
    }
    let written: bridge::Config = read_config(&saved)?;
    let trained = args.run.join("projections.safetensors");
    if !trained.exists() {
        return Err(Error::Config(
            "expected a finished run but found no projections.safetensors\nfinish it with `rscapret train --resume`"
                .into(),
        ))
        .at(args.run.display());
    }
    let licences: Vec<Licence> = serde_json::from_slice(&read_whole(&args.terms, MAX_TERMS)?)
        .map_err(|e| Error::Malformed(format!("expected a list of terms but found: {e}")))
        .at(args.terms.display())?;
    let (config, dtype) = (hub::local(&written)?, args.dtype.dtype());
    let llm_path = args.out.join(LLM);
    let llm = if config.llm.is_dir() {
        let llm = llama_file(&args.name, &config.llm, dtype).await?;
        write_whole(&llm_path, &llm)?;
        FileEntry::of(LLM, &llm)
    } else {
        // Copied first and described then: what the bundle says is what lies in it.
        bridge::gguf(&config.llm)?;
        if args.link {
            link(&config.llm, &llm_path)?
        } else {
            copy_atomic(&config.llm, &llm_path)?
        }
        describe(&llm_path, LLM)?
    };
    let vision = vision_file(&args.name, &config.clip, dtype).await?;
    write_whole(&args.out.join(VISION), &vision)?;
    let vision = FileEntry::of(VISION, &vision);
    let trained_for = [(LLM_SHA256, &llm.sha256), (VISION_SHA256, &vision.sha256)];
    let projections = projections_file(&trained, &trained_for).await?;
    write_whole(&args.out.join(PROJECTIONS), &projections)?;
    let projections = FileEntry::of(PROJECTIONS, &projections);
    let (total, maps) = (llm.bytes + vision.bytes + projections.bytes, projections.bytes);

    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: args.name.clone(),
        files: Files { llm, vision, projections },
        licences,
        training: Training {
            config: toml::to_string_pretty(&written).map_err(|e| Error::Config(e.to_string()))?,
            data: config.data.iter().map(|source| format!("{} (train)", source.dataset.name)).collect(),
            commit: commit(),
        },
        notes: args.notes.clone(),
    };
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
    println!("{}: {:.1} MB, {maps} of trained maps", args.out.display(), total as f64 / 1e6);
    Ok(())
}

/// A Hugging Face folder's language model as GGUF.
async fn llama_file(name: &str, folder: &Path, dtype: Dtype) -> Result<Vec<u8>> {
    let config = LlamaConfig::from_json(&read_json(folder, "config.json")?)?;
    let mut vocab = vocab_from_json(&read_json(folder, "tokenizer.json")?).at(folder.display())?;
    vocab.add_bos = Some(true);
    let weights = HuggingFaceWeights::open(folder)?;
    llama_gguf(name, &config, &vocab, &weights, dtype).await.at(folder.display())?.to_bytes()
}

/// A CLIP's vision tower as GGUF.
async fn vision_file(name: &str, path: &Path, dtype: Dtype) -> Result<Vec<u8>> {
    let files = ClipFiles::open(path)?;
    let config = ClipConfig::from_json(&files.config_json).at(path.display())?;
    let preprocess = PreprocessConfig::from_json(&String::from_utf8_lossy(&files.preprocessor_json))?;
    vision_gguf(name, &config.vision_config, &preprocess, &files.weights, dtype).await.at(path.display())?.to_bytes()
}

/// The trained maps, with what the run says of their use and the digests of the models that they were trained for.
async fn projections_file(trained: &Path, trained_for: &[(&str, &String)]) -> Result<Vec<u8>> {
    let source = SafetensorsFile::open(FileSource::open(trained)?).await.at(trained.display())?;
    let mut maps = BTreeMap::new();
    for info in source.tensors() {
        maps.insert(info.name.clone(), source.fetch(&info.name).await?);
    }
    let mut metadata: BTreeMap<String, String> = source.header().metadata.iter().cloned().collect();
    metadata.extend(trained_for.iter().map(|(key, sha256)| (key.to_string(), sha256.to_string())));
    let mut bytes = Vec::new();
    write_safetensors(&maps, &metadata, &mut bytes)?;
    Ok(bytes)
}

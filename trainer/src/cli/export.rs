//! `rscapret export`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FORMAT_VERSION, FileEntry, Files, Origin, Training},
    clip::{ClipConfig, preprocess::PreprocessConfig, vision_gguf},
    llama::{LlamaConfig, llama_gguf, vocab_from_json},
    projection::{LLM_SHA256, VISION_SHA256},
    weights::{
        Dtype, TensorSource,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};

use super::{
    assemble::{LLM, PROJECTIONS, VISION, finish, place, terms},
    bundle::picture,
};
use crate::{
    bridge,
    dataset::load_unlimited,
    files::{
        FileSource,
        clip::ClipFiles,
        hugging_face::{HuggingFaceWeights, read_json},
    },
    hub,
    provenance::{bundle_of, of_model, of_run},
    run_dir::{read_config, write_whole},
};

/// Write a run's models as a bundle: a folder that the page and the other commands load
///
/// llm.gguf and vision.gguf in the asked types (an `llm` that is a GGUF is taken as it is, byte for byte),
/// projections.safetensors with the digests of both, and bundle.json with every file's size and digest, and of the maps, and
/// of models that were trained here, too, the configuration, the data sets and the commit. The bundle is opened again and
/// captions the first image of the run's data, or a grey one, before the command ends.
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
    /// Type of the language model's matrices
    #[arg(long, value_enum, default_value = "q8-0")]
    pub dtype: Type,
    /// Type of the vision tower's matrices [default: that of --dtype, but q8-0 beside q4-0, for a tower is small and sees
    /// less by 4 bits]
    #[arg(long, value_enum)]
    pub vision_dtype: Option<Type>,
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

impl Args {
    fn vision_dtype(&self) -> Dtype {
        match (self.vision_dtype, self.dtype) {
            (Some(dtype), _) => dtype.dtype(),
            (None, Type::Q4_0) => Dtype::Q8_0,
            (None, dtype) => dtype.dtype(),
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
    let licences = terms(&args.terms)?;
    let Some(Origin { config: text, data, commit }) = of_run(&args.run)? else {
        return Err(Error::Config(
            "expected config.toml to begin with the commit of the run but found other text".into(),
        ))
        .at(args.run.display());
    };
    let config = hub::local(&written)?;
    let (llm, llm_origin) = llm(args, &config.llm).await?;
    let vision = vision_file(&args.name, &config.clip, args.vision_dtype()).await?;
    write_whole(&args.out.join(VISION), &vision)?;
    let vision = FileEntry::of(VISION, &vision);
    let trained_for = [(LLM_SHA256, &llm.sha256), (VISION_SHA256, &vision.sha256)];
    let projections = projections_file(&trained, &trained_for).await?;
    write_whole(&args.out.join(PROJECTIONS), &projections)?;
    let projections = FileEntry::of(PROJECTIONS, &projections);

    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: args.name.clone(),
        files: Files { llm, vision, projections },
        licences,
        training: Training { config: text, data, commit, llm: llm_origin, vision: of_model(&config.clip)? },
        notes: args.notes.clone(),
    };
    finish(&args.out, &manifest, first_image(&config)).await
}

/// The language model's file in the bundle, and how the model came about where that is known here.
async fn llm(args: &Args, path: &Path) -> Result<(FileEntry, Option<Origin>)> {
    if path.is_dir() {
        let llm = llama_file(&args.name, path, args.dtype.dtype()).await?;
        write_whole(&args.out.join(LLM), &llm)?;
        return Ok((FileEntry::of(LLM, &llm), of_model(path)?));
    }
    bridge::gguf(path)?;
    let entry = place(path, &args.out, LLM, args.link)?;
    let origin = bundle_of(path, &entry)?.and_then(|bundle| bundle.training.llm);
    Ok((entry, origin))
}

/// The first image of the data, if it can be read: the bundle is tried on it.
fn first_image(config: &bridge::Config) -> Option<PathBuf> {
    let (dataset, _) = load_unlimited(&config.data.first()?.dataset).ok()?;
    let path = dataset.image_path(dataset.items.first()?).ok()?;
    picture(&path).is_ok().then_some(path)
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

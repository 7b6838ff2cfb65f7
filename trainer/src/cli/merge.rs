//! `rscapret merge`.

use std::path::{Path, PathBuf};

use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FORMAT_VERSION, FileEntry, Files, Licence, Origin, Training},
    projection::{LLM_SHA256, VISION_SHA256},
    weights::safetensors::SafetensorsFile,
};

use super::assemble::{LLM, PROJECTIONS, VISION, finish, place, terms};
use crate::{
    files::{FileSource, describe, read_manifest},
    provenance::{bundle_of, from_metadata},
};

/// Put a bundle together from files at hand: a language model, a vision tower, and the maps that were trained for them
///
/// The maps name the two models that they were trained for by digest; with any others there is no bundle. Each part is a
/// file, or a bundle's folder whose file is taken. How the maps were trained and the terms of use are taken over from the
/// bundles that the parts lie in, and from the maps themselves. The bundle is opened again and captions a picture before the
/// command ends.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret merge --llm llama.gguf --vision clip.gguf --projections maps.safetensors --out my-bundle --terms terms.json
  rscapret merge --llm models/demo --vision models/demo --projections maps.safetensors --out my-bundle --link")]
pub struct Args {
    /// Language model: a GGUF, or a bundle's folder
    #[arg(long, value_name = "PART")]
    pub llm: PathBuf,
    /// Vision tower: a GGUF, or a bundle's folder
    #[arg(long, value_name = "PART")]
    pub vision: PathBuf,
    /// Trained maps: a projections.safetensors of `rscapret export`, or a bundle's folder
    #[arg(long, value_name = "PART")]
    pub projections: PathBuf,
    /// Folder of the bundle
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Name of the bundle
    #[arg(long, default_value = "bundle")]
    pub name: String,
    /// Terms of use beside those of the bundles that parts lie in: JSON, `[{"part": ..., "terms": ...}]`
    #[arg(long, value_name = "FILE")]
    pub terms: Option<PathBuf>,
    /// Link the files into the bundle instead of copying them; all must lie on one file system
    #[arg(long)]
    pub link: bool,
    /// The picture to caption [default: a grey one]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// A sentence or two for whoever opens the bundle
    #[arg(long, default_value = "")]
    pub notes: String,
}

/// A part of the bundle to be.
struct Part {
    path: PathBuf,
    entry: FileEntry,
    /// The bundle that it lies in.
    from: Option<Bundle>,
}

impl Part {
    /// A file, or the one of a bundle's folder that `role` names.
    fn open(path: &Path, role: fn(&Files) -> &FileEntry) -> Result<Self> {
        let listed =
            path.is_dir().then(|| read_manifest(path)).transpose()?.map(|(found, _)| role(&found.files).clone());
        let path = listed.as_ref().map_or(path.to_path_buf(), |listed| path.join(&listed.path));
        let entry = describe(&path, "")?;
        if let Some(listed) = listed.filter(|listed| listed.sha256 != entry.sha256) {
            return Err(Error::Hash { expected: listed.sha256, found: entry.sha256 }).at(path.display());
        }
        let from = bundle_of(&path, &entry)?;
        Ok(Part { path, entry, from })
    }
}

/// # Errors
/// Maps that were trained for other models, parts without terms, a bundle that cannot be written or used.
pub fn run(args: &Args) -> Result<()> {
    pollster::block_on(merge(args))
}

async fn merge(args: &Args) -> Result<()> {
    let llm = Part::open(&args.llm, |files| &files.llm)?;
    let vision = Part::open(&args.vision, |files| &files.vision)?;
    let maps = Part::open(&args.projections, |files| &files.projections)?;
    gguf(&llm.path)?;
    gguf(&vision.path)?;
    let source = SafetensorsFile::open(FileSource::open(&maps.path)?).await.at(maps.path.display())?;
    for (key, part) in [(LLM_SHA256, &llm), (VISION_SHA256, &vision)] {
        trained_for(source.metadata(key), key, part).at(maps.path.display())?;
    }
    let licences = licences(args.terms.as_deref(), &[&llm, &vision, &maps])?;
    let written = from_metadata(|key| source.metadata(key)).at(maps.path.display())?;
    let training = training(&llm, &vision, &maps, written);
    let files = Files {
        llm: place(&llm.path, &args.out, LLM, args.link)?,
        vision: place(&vision.path, &args.out, VISION, args.link)?,
        projections: place(&maps.path, &args.out, PROJECTIONS, args.link)?,
    };
    let manifest = Bundle {
        format_version: FORMAT_VERSION,
        name: args.name.clone(),
        files,
        licences,
        training,
        notes: args.notes.clone(),
    };
    finish(&args.out, &manifest, args.image.clone()).await
}

fn gguf(path: &Path) -> Result<()> {
    if FileSource::open(path)?.begins_with(b"GGUF")? {
        return Ok(());
    }
    Err(Error::Config(
        "expected a GGUF but found another kind of file\nmake one of a run with `rscapret export`".into(),
    ))
    .at(path.display())
}

fn trained_for(found: Option<&str>, key: &str, part: &Part) -> Result<()> {
    let (expected, path) = (&part.entry.sha256, part.path.display());
    match found {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Error::Config(format!(
            "expected maps that were trained for {path}, {key} = {expected}, but found {found}\n\
             take the file that they were trained for, or train others with `rscapret train`"
        ))),
        None => Err(Error::Config(format!(
            "expected `{key}` in the metadata but found none\nmake a bundle of the run that trained them with `rscapret export`"
        ))),
    }
}

/// Those given, and those of every bundle that a part lies in, each once.
fn licences(given: Option<&Path>, parts: &[&Part]) -> Result<Vec<Licence>> {
    let mut all = given.map(terms).transpose()?.unwrap_or_default();
    for licence in parts.iter().filter_map(|part| part.from.as_ref()).flat_map(|bundle| &bundle.licences) {
        if !all.contains(licence) {
            all.push(licence.clone());
        }
    }
    if all.is_empty() {
        return Err(Error::Config(
            "expected terms of use but found none: no part lies in a bundle\nname a file of them with --terms".into(),
        ));
    }
    Ok(all)
}

/// What is known of the maps and of the models: by the bundle of the maps, for theirs are the same models; by that of a
/// model; by the maps' own metadata.
fn training(llm: &Part, vision: &Part, maps: &Part, written: Option<Origin>) -> Training {
    let of = |part: &Part| part.from.as_ref().map(|bundle| bundle.training.clone());
    let (maps, llm, vision) = (of(maps), of(llm), of(vision));
    let own = maps.clone().unwrap_or_else(|| {
        let Origin { config, data, commit } = written.unwrap_or_else(|| {
            eprintln!("the maps do not say how they were trained: the bundle's commit is `unknown`");
            Origin { commit: "unknown".into(), ..Origin::default() }
        });
        Training { config, data, commit, ..Training::default() }
    });
    let first = |model: &Option<Training>, pick: fn(&Training) -> &Option<Origin>| {
        [&maps, model].into_iter().flatten().find_map(|training| pick(training).clone())
    };
    Training { llm: first(&llm, |t| &t.llm), vision: first(&vision, |t| &t.vision), ..own }
}

//! `rscapret inspect`: what is in a file of weights or a bundle.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use indicatif::BinaryBytes;
use pollster::block_on;
use rscapret::{
    Context, Error, Result,
    bundle::Bundle,
    weights::{
        ByteSource,
        gguf::{GgufFile, MAGIC},
        inspect::{InspectedTensor, Inspection, inspect_gguf, inspect_safetensors},
        safetensors::SafetensorsFile,
    },
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::output::{self, printable};
use crate::files::{BundleFolder, FileSource, open_bundle};

/// Show what is in a GGUF, a safetensors file or a bundle: metadata, and every tensor with its shape, type and size
///
/// Only headers are read, so large files are shown at once. Of a bundle the digests are checked, too.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret inspect models/demo/llm.gguf
  rscapret inspect models/demo
  rscapret inspect model.safetensors --json")]
pub struct Args {
    /// A .gguf or .safetensors file, or a bundle's folder
    pub file: PathBuf,

    /// Print JSON: `metadata`, and `tensors` with name, shape, type and bytes
    #[arg(long)]
    pub json: bool,
}

/// Prints the page.
///
/// # Errors
/// When the file is of another kind, damaged or unreadable.
pub fn run(args: &Args) -> Result<()> {
    if args.file.is_dir() {
        let page = BundlePage::of(&open_bundle(&args.file)?)?;
        if args.json { output::json(&page) } else { output::text(&page.text()) }
    } else {
        let page = look(FileSource::open(&args.file)?).at(args.file.display())?;
        if args.json { output::json(&page) } else { output::text(&page.to_string()) }
    }
}

/// Looks into one file of weights, told by its first bytes, or else by its name.
fn look(source: FileSource) -> Result<Inspection> {
    let first = block_on(source.read(0, source.len().min(9) as usize))?;
    let named = |extension: &str| has_extension(source.path(), extension);
    if first.starts_with(&MAGIC) || named("gguf") {
        inspect_gguf(&block_on(GgufFile::open(source))?)
    } else if first.get(8) == Some(&b'{') || named("safetensors") {
        inspect_safetensors(&block_on(SafetensorsFile::open(source))?)
    } else {
        Err(Error::Unsupported(format!(
            "expected a GGUF, a safetensors file or a bundle's folder but found {}",
            if first.is_empty() { "no bytes".to_string() } else { format!("bytes that begin with {first:02x?}") }
        )))
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// A bundle, its three files in one.
#[derive(Serialize)]
struct BundlePage {
    kind: String,
    id: String,
    parameters: u64,
    bytes: u64,
    metadata: Bundle,
    /// Metadata of each file.
    files: Map<String, Value>,
    tensors: Vec<BundleTensor>,
    #[serde(skip)]
    pages: Vec<Inspection>,
}

#[derive(Serialize)]
struct BundleTensor {
    file: String,
    #[serde(flatten)]
    tensor: InspectedTensor,
}

impl BundlePage {
    fn of(bundle: &BundleFolder) -> Result<Self> {
        let mut page = BundlePage {
            kind: format!("bundle v{}", bundle.manifest.format_version),
            id: bundle.id.clone(),
            parameters: 0,
            bytes: 0,
            metadata: bundle.manifest.clone(),
            files: Map::new(),
            tensors: Vec::new(),
            pages: Vec::new(),
        };
        for ((_, entry), source) in bundle.manifest.files.iter().zip([&bundle.llm, &bundle.vision, &bundle.projections])
        {
            let inspection = look(FileSource::open(source.path())?).at(source.path().display())?;
            page.parameters += inspection.parameters;
            page.bytes += entry.bytes;
            page.files.insert(entry.path.clone(), Value::Object(inspection.metadata.clone()));
            let tensors = inspection.tensors.iter().cloned();
            page.tensors.extend(tensors.map(|tensor| BundleTensor { file: entry.path.clone(), tensor }));
            page.pages.push(inspection);
        }
        Ok(page)
    }

    fn text(&self) -> String {
        let manifest = &self.metadata;
        let size = BinaryBytes;
        // Writing to a string cannot fail.
        let mut text = format!(
            "{} `{}`: 3 files as the manifest says, {} parameters, {}\nid {}\n\nfiles\n",
            self.kind,
            printable(&manifest.name),
            self.parameters,
            size(self.bytes),
            self.id
        );
        for (role, entry) in manifest.files.iter() {
            let shown = size(entry.bytes).to_string();
            let _ = writeln!(text, "  {role:11}  {:24}  {shown:>10}  sha256 {}", entry.path, entry.sha256);
        }
        text += "\nlicences\n";
        let width = manifest.licences.iter().map(|l| l.part.chars().count()).max().unwrap_or(0).min(48);
        for licence in &manifest.licences {
            let _ = writeln!(text, "  {:width$}  {}", printable(&licence.part), printable(&licence.terms));
        }
        let _ = writeln!(text, "\ntraining\n  commit  {}", printable(&manifest.training.commit));
        for data in &manifest.training.data {
            let _ = writeln!(text, "  data    {}", printable(data));
        }
        for line in manifest.training.config.lines() {
            let _ = writeln!(text, "  config  {}", printable(line));
        }
        for (role, origin) in [("llm", &manifest.training.llm), ("vision", &manifest.training.vision)] {
            let Some(origin) = origin else { continue };
            let _ = writeln!(text, "\ntraining of {role}\n  commit  {}", printable(&origin.commit));
            let lines = origin.data.iter().map(|data| ("data", data.as_str()));
            for (key, line) in lines.chain(origin.config.lines().map(|line| ("config", line))) {
                let _ = writeln!(text, "  {key:6}  {}", printable(line));
            }
        }
        if !manifest.notes.is_empty() {
            text += "\nnotes\n";
            manifest.notes.lines().for_each(|line| text += &format!("  {}\n", printable(line)));
        }
        for ((_, entry), page) in manifest.files.iter().zip(&self.pages) {
            let _ = write!(text, "\n{}\n{page}", entry.path);
        }
        text
    }
}

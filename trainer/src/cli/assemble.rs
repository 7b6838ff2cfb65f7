//! What `export` and `merge` share: files become a bundle, and the bundle is tried before it is called one.

use std::path::{Path, PathBuf};

use rscapret::{
    Candle, Context, Error, Result,
    bundle::{Bundle, FileEntry, Licence, MANIFEST},
    caption::{Captioner, DecodeOptions},
    clip::preprocess::Picture,
};

use super::{
    bundle::picture,
    output::{self, printable},
};
use crate::{
    files::{copy_atomic, describe, link, open_bundle, read_whole},
    run_dir::write_whole,
};

/// Largest file of terms, bytes.
const MAX_TERMS: u64 = 64 << 20;
/// Side of the grey picture, pixels.
const SIDE: usize = 64;

// Names in the bundle.
pub(super) const LLM: &str = "llm.gguf";
pub(super) const VISION: &str = "vision.gguf";
pub(super) const PROJECTIONS: &str = "projections.safetensors";

/// Reads terms of use: JSON, `[{"part": ..., "terms": ...}]`.
pub(super) fn terms(path: &Path) -> Result<Vec<Licence>> {
    serde_json::from_slice(&read_whole(path, MAX_TERMS)?)
        .map_err(|e| Error::Malformed(format!("expected a list of terms but found: {e}")))
        .at(path.display())
}

/// Puts a file into the bundle, as a copy or as one more name of it. Described is what lies there then.
pub(super) fn place(from: &Path, folder: &Path, name: &str, linked: bool) -> Result<FileEntry> {
    let to = folder.join(name);
    if linked {
        link(from, &to)?
    } else {
        copy_atomic(from, &to)?
    }
    describe(&to, name)
}

/// Writes the manifest, opens the bundle as whoever gets it does, and captions one picture: the image, or without one a
/// grey square. Tells both.
pub(super) async fn finish(folder: &Path, manifest: &Bundle, image: Option<PathBuf>) -> Result<()> {
    write_whole(&folder.join(MANIFEST), &manifest.to_json()?)?;
    let bundle = open_bundle(folder)?;
    let (llm, vision, projections) = (bundle.llm, bundle.vision, bundle.projections);
    let captioner = Captioner::load(Candle::cpu(), &bundle.manifest, &bundle.id, llm, vision, projections);
    let captioner = captioner.await.at(folder.display())?;
    let (name, picture) = match image {
        Some(path) => (path.display().to_string(), picture(&path)?),
        None => ("a grey picture".to_string(), Picture::new(SIDE, SIDE, vec![127; SIDE * SIDE * 3])?),
    };
    let caption = async { captioner.caption(&captioner.features(&[picture])?, &DecodeOptions::default()).await };
    let caption = caption.await.at(folder.display())?;
    let files = &manifest.files;
    let (total, maps) = (files.iter().map(|(_, entry)| entry.bytes).sum::<u64>(), files.projections.bytes);
    output::text(&format!(
        "{}: {:.1} MB, {maps} of trained maps\n{}: {}",
        folder.display(),
        total as f64 / 1e6,
        printable(&name),
        printable(&caption)
    ))
}

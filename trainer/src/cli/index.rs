//! `rscapret index`: a folder of images to an index that `search` reads.

use std::{
    fs::{self, DirEntry},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use pollster::block_on;
use rayon::prelude::*;
use rscapret::{Backend, Context, Error, Result, caption::Captioner, retrieval::RetrievalIndex};
use serde::Serialize;

use super::{
    bundle::{BundleArgs, Refused, picture, with_captioner},
    output::{self, counted},
};
use crate::{
    files::{expect_writable, unwritable, write_atomic},
    progress,
};

/// Images that go through the vision tower at once.
const BATCH: usize = 8;
/// Extensions of files that are taken for images.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "tif", "tiff"];

/// Make an index of a folder of images, to be searched by sentences or images
///
/// Takes the .jpg, .jpeg, .png, .webp, .tif and .tiff files of the folder and of all folders in it. A file that is no
/// readable image, and a folder that cannot be read, is named on standard error, the others are indexed, and the exit code
/// is 1. The index holds only with the bundle that made it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret index models/demo/album -o album.idx
  rscapret index photos -o photos.idx --bundle my-bundle --json")]
pub struct Args {
    /// Folder of images
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// The index to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub bundle: BundleArgs,

    /// Print JSON: {"index", "images", "refused"}, the numbers of images indexed and of those that could not be
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Indexed {
    index: String,
    images: usize,
    refused: usize,
}

/// Writes the index.
///
/// # Errors
/// No image in the folder, a bundle that cannot be used, an index that cannot be written; at the end, images that could
/// not be read.
pub fn run(args: &Args) -> Result<()> {
    let found = images(&args.folder)?;
    if found.names.is_empty() {
        let (mut refused, known) = (Refused::default(), EXTENSIONS.join(", ."));
        found.refused.iter().for_each(|error| refused.add(&ProgressBar::hidden(), error));
        refused.finish(found.refused.len())?;
        return Err(Error::Config(format!("expected images (.{known}) but found none"))).at(args.folder.display());
    }
    // Before anything is computed.
    expect_writable(&args.output)?;
    with_captioner!(args.bundle, |captioner| index(args, &found, &captioner))
}

fn index<B: Backend>(args: &Args, found: &Found, captioner: &Captioner<B>) -> Result<()> {
    let mut index = RetrievalIndex::new(captioner.bundle_id(), captioner.projections().config().joint_size)?;
    let bar = progress::bar(found.names.len(), "images");
    let mut refused = Refused::default();
    found.refused.iter().for_each(|error| refused.add(&bar, error));
    for batch in found.names.chunks(BATCH) {
        let pictures: Vec<_> = batch.par_iter().map(|name| picture(&args.folder.join(name))).collect();
        let (mut read, mut ids) = (Vec::new(), Vec::new());
        for (name, picture) in batch.iter().zip(pictures) {
            match picture {
                Ok(picture) => {
                    read.push(picture);
                    ids.push(name);
                }
                Err(error) => refused.add(&bar, &error),
            }
        }
        if !read.is_empty() {
            let rows = block_on(captioner.image_embedding(&captioner.features(&read)?))?;
            for (id, row) in ids.into_iter().zip(rows.chunks_exact(index.dimension())) {
                index.push(id.as_str(), row).at(id)?;
            }
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    if !index.is_empty() {
        write_atomic(&args.output, |file| file.write_all(&index.save()).map_err(unwritable))?;
        let (path, images) = (args.output.display(), index.len());
        if args.json {
            output::json(&Indexed { index: path.to_string(), images, refused: refused.count() })?;
        } else {
            output::text(&format!("{path}: {}", counted(images, "image")))?;
        }
    }
    refused.finish(found.names.len() + found.refused.len())
}

/// What lies under a folder.
#[derive(Default)]
struct Found {
    /// Images as paths relative to it, with `/`, sorted.
    names: Vec<String>,
    /// Files whose names are no Unicode, and folders that cannot be read.
    refused: Vec<Error>,
}

/// # Errors
/// [`Error::Io`] with the path where the folder itself cannot be read.
fn images(folder: &Path) -> Result<Found> {
    let mut found = Found::default();
    for entry in entries(folder)? {
        walk(entry, "", &mut found);
    }
    found.names.sort_unstable();
    Ok(found)
}

/// A folder's entries, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries
        .map_err(|error| Error::Io(format!("expected a readable folder but found: {error}")))
        .at(folder.display())?;
    entries.sort_unstable_by_key(DirEntry::file_name);
    Ok(entries)
}

/// Adds an entry, and if it is a folder what is in it.
fn walk(entry: DirEntry, prefix: &str, found: &mut Found) {
    let path = entry.path();
    // Links to folders are not followed: they may lead back.
    let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
    if !is_folder && !path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known))) {
        return;
    }
    let name = entry
        .file_name()
        .into_string()
        .map_err(|_| Error::Io("expected a name in Unicode but found another\nrename it".to_string()));
    match name.at(path.display()).map(|name| format!("{prefix}{name}")) {
        Ok(name) if is_folder => match entries(&path) {
            Ok(inside) => inside.into_iter().for_each(|entry| walk(entry, &format!("{name}/"), found)),
            Err(error) => found.refused.push(error),
        },
        Ok(name) => found.names.push(name),
        Err(error) => found.refused.push(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_all_folders_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("b/c.png")).unwrap();
        for name in ["z.jpg", "a.JPEG", "b/c.png/x.tif", "b/y.webp", "notes.txt", "b/jpg", "b/.hidden"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = images(folder.path()).unwrap();
        assert_eq!(found.names, ["a.JPEG", "b/c.png/x.tif", "b/y.webp", "z.jpg"]);
        assert!(found.refused.is_empty());
        let Err(error) = images(&folder.path().join("none")) else { panic!("a folder that is not there was read") };
        let error = error.to_string();
        assert!(error.contains("none: expected a readable folder but found"), "{error}");
    }
}

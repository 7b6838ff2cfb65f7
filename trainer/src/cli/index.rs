//! `rscapret index`: a folder of images to an index that `search` reads.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use pollster::block_on;
use rayon::prelude::*;
use rscapret::{Backend, Context, Error, Result, caption::Captioner, retrieval::RetrievalIndex};

use super::{
    bundle::{BundleArgs, Refused, picture, progress, with_captioner},
    output,
};
use crate::files::write_atomic;

/// Images that go through the vision tower at once.
const BATCH: usize = 8;
/// Extensions of files that are taken for images.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "tif", "tiff"];

/// Make an index of a folder of images, to be searched by sentences or images
///
/// Takes the .jpg, .jpeg, .png, .webp, .tif and .tiff files of the folder and of all folders in it. A file that is no
/// readable image is named on standard error, the others are indexed, and the exit code is 1. The index holds only with
/// the bundle that made it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  rscapret index models/demo/album -o album.idx
  rscapret index photos -o photos.idx --bundle my-bundle")]
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
}

/// Writes the index.
///
/// # Errors
/// No image in the folder, a bundle that cannot be used, an index that cannot be written; at the end, images that could
/// not be read.
pub fn run(args: &Args) -> Result<()> {
    let names = images(&args.folder)?;
    if names.is_empty() {
        let known = EXTENSIONS.join(", .");
        return Err(Error::Config(format!("expected images (.{known}) but found none"))).at(args.folder.display());
    }
    with_captioner!(args.bundle, |captioner| index(args, &names, &captioner))
}

fn index<B: Backend>(args: &Args, names: &[String], captioner: &Captioner<B>) -> Result<()> {
    let mut index = RetrievalIndex::new(captioner.bundle_id(), captioner.projections().config().joint_size)?;
    let bar = progress(names.len(), "images");
    let mut refused = Refused::default();
    for batch in names.chunks(BATCH) {
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
    if index.is_empty() {
        return refused.finish(names.len());
    }
    write_atomic(&args.output, |file| {
        file.write_all(&index.save())
            .map_err(|error| Error::Io(format!("expected to write the index but found: {error}")))
    })?;
    output::text(&format!("{}: {} images", args.output.display(), index.len()))?;
    refused.finish(names.len())
}

/// Images under a folder as paths relative to it, with `/`, sorted.
///
/// # Errors
/// [`Error::Io`] with the path for a folder that cannot be read, and for a name that is no Unicode.
fn images(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    walk(folder, "", &mut names)?;
    names.sort_unstable();
    Ok(names)
}

fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    let unreadable = |error: std::io::Error| Error::Io(format!("expected a readable folder but found: {error}"));
    for entry in fs::read_dir(folder).map_err(unreadable).at(folder.display())? {
        let entry = entry.map_err(unreadable).at(folder.display())?;
        let path = entry.path();
        // Links to folders are not followed: they may lead back.
        let kind = entry.file_type().map_err(unreadable).at(path.display())?;
        let known = path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)));
        if !kind.is_dir() && !known {
            continue;
        }
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| Error::Io("expected a name in Unicode but found another\nrename the file".to_string()));
        let name = format!("{prefix}{}", name.at(path.display())?);
        if kind.is_dir() { walk(&path, &format!("{name}/"), names)? } else { names.push(name) }
    }
    Ok(())
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
        assert_eq!(images(folder.path()).unwrap(), ["a.JPEG", "b/c.png/x.tif", "b/y.webp", "z.jpg"]);
        let error = images(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: expected a readable folder but found"), "{error}");
    }
}

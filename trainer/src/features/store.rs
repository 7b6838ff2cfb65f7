//! `features.safetensors`: what the frozen vision tower says of images, so that it says it once.
//!
//! One tensor an image, named by the SHA-256 of the image's file, of shape (views, width); the metadata names the tower by the
//! SHA-256 of its own files, and the grid of patches where a row is not the class token alone. An image that moves keeps its
//! features, one that changes loses them, and so do all when the tower changes.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use pollster::block_on;
use rayon::prelude::*;
use rscapret::{
    Context, Error, Result,
    clip::ImageFeature,
    projection::Conventions,
    weights::{
        TensorSource, quant,
        safetensors::{SafetensorsFile, write_safetensors},
    },
};
use sha2::{Digest, Sha256};

use crate::{
    files::{FileSource, clip::open_clip_files, hugging_face::TORCH, unwritable, write_atomic},
    vars::raw,
};

const TOWER: &str = "tower_sha256";
const WIDTH: &str = "feature_size";

/// Features of images by the hash of their files.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureStore {
    tower: String,
    feature: ImageFeature,
    width: usize,
    rows: BTreeMap<String, Vec<f32>>,
}

impl FeatureStore {
    /// Nothing yet of a tower ([`tower_hash`]) with features of a kind, each row of `width`.
    pub fn new(tower: &str, feature: ImageFeature, width: usize) -> Self {
        FeatureStore { tower: tower.to_string(), feature, width, rows: BTreeMap::new() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// With the path: a file that is no such store, or features of different widths.
    pub fn open(path: &Path) -> Result<Self> {
        let read = || {
            let file = block_on(SafetensorsFile::open(FileSource::open(path)?))?;
            let metadata = |key: &str| {
                file.metadata(key).ok_or_else(|| {
                    Error::Malformed(format!(
                        "expected `{key}` in the metadata but found none\nmake it with `rscapret features`"
                    ))
                })
            };
            let width = metadata(WIDTH)?.parse().ok().filter(|&width: &usize| width > 0);
            let width = width.ok_or_else(|| Error::Malformed(format!("expected `{WIDTH}` to be a positive number")))?;
            let feature = Conventions::from_metadata(|key| file.metadata(key))?.image_feature;
            if width % feature.vectors() != 0 {
                return Err(Error::Malformed(format!(
                    "expected `{WIDTH}` to be a multiple of its {} vectors but found {width}",
                    feature.vectors()
                )));
            }
            let mut store = FeatureStore::new(metadata(TOWER)?, feature, width);
            for info in file.tensors() {
                if info.shape.len() != 2 || info.shape[1] != width {
                    let (name, found) = (info.name.clone(), info.shape.clone());
                    return Err(Error::Shape { name, expected: vec![1, width], found });
                }
                let values = quant::dequantize(&block_on(file.fetch(&info.name))?)?;
                store.rows.insert(info.name.clone(), values);
            }
            Ok(store)
        };
        read().at(path.display())
    }

    /// Writes the file; the same features give the same bytes.
    ///
    /// # Errors
    /// A full disk, a folder that cannot be written; an earlier file stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors =
            self.rows.iter().map(|(hash, row)| (hash.clone(), raw(row, &[row.len() / self.width, self.width])));
        let mut metadata = Conventions { image_feature: self.feature, ..Conventions::default() }.to_metadata();
        metadata.extend([(TOWER.to_string(), self.tower.clone()), (WIDTH.to_string(), self.width.to_string())]);
        let tensors = tensors.collect();
        write_atomic(path, |file| {
            let mut out = BufWriter::new(file);
            write_safetensors(&tensors, &metadata, &mut out)?;
            // Dropped, it would keep to itself that the disk is full.
            out.flush().map_err(unwritable)
        })
    }

    /// The first `views` of an image, (views, width), if that many are known.
    pub fn get(&self, hash: &str, views: usize) -> Option<&[f32]> {
        self.rows.get(hash)?.get(..views.checked_mul(self.width)?)
    }

    /// Puts all views of an image, (views, width).
    ///
    /// # Errors
    /// [`Error::Shape`] for another width.
    pub fn insert(&mut self, hash: String, views: Vec<f32>) -> Result<()> {
        if views.is_empty() || !views.len().is_multiple_of(self.width) {
            return Err(Error::Shape { name: hash, expected: vec![1, self.width], found: vec![views.len()] });
        }
        self.rows.insert(hash, views);
        Ok(())
    }

    /// Which tower they are of.
    pub fn tower(&self) -> &str {
        &self.tower
    }

    /// Which of its outputs.
    pub fn feature(&self) -> ImageFeature {
        self.feature
    }

    /// Whether they are of this kind.
    ///
    /// # Errors
    /// [`Error::Config`] if not.
    pub fn fits(&self, feature: ImageFeature) -> Result<()> {
        if self.feature == feature {
            return Ok(());
        }
        let named = |feature| match feature {
            ImageFeature::Class => "the class token".to_string(),
            ImageFeature::Patches { grid } => format!("patches in a grid of {grid} x {grid}"),
        };
        Err(Error::Config(format!(
            "expected features of {} but found those of {}\n\
             make a file for this configuration with `rscapret features`, or give `image_feature` and `patch_grid` the \
             values that this one was made by",
            named(feature),
            named(self.feature)
        )))
    }

    /// Of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a tower's features depend on: its weights, its shape, its preprocessing.
///
/// # Errors
/// With the path: a file that cannot be read.
pub fn tower_hash(path: &Path) -> Result<String> {
    let files = match open_clip_files(path)? {
        Some((weights, config)) => std::iter::once(weights).chain(config).collect(),
        None => hugging_face_files(path)?,
    };
    let mut hash = Sha256::new();
    for path in files {
        // The name tells a file that became another from two that changed places.
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
        hash_file(&path, &mut hash)?;
    }
    Ok(hex(&hash.finalize()))
}

fn hugging_face_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |e: std::io::Error| Error::Io(format!("expected a readable folder but found: {e}"));
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable).at(folder.display())? {
        let path = entry.map_err(unreadable).at(folder.display())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".safetensors") || [TORCH, "config.json", "preprocessor_config.json"].contains(&name) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// SHA-256 of each file, on all cores.
///
/// # Errors
/// With the path: the first file that cannot be read.
pub fn file_hashes(paths: &[&Path]) -> Result<Vec<String>> {
    let hash = |path: &&Path| {
        let mut hash = Sha256::new();
        hash_file(path, &mut hash)?;
        Ok(hex(&hash.finalize()))
    };
    paths.par_iter().map(hash).collect()
}

fn hash_file(path: &Path, hash: &mut Sha256) -> Result<()> {
    let mut read = || -> std::io::Result<()> {
        let mut file = fs::File::open(path)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(()),
                n => hash.update(&piece[..n]),
            }
        }
    };
    read().map_err(|e| Error::Io(format!("expected a readable file but found: {e}"))).at(path.display())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.safetensors");
        let mut store = FeatureStore::new("tower", ImageFeature::Class, 3);
        store.insert("b".into(), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        store.insert("a".into(), vec![7.0, 8.0, 9.0]).unwrap();
        store.save(&path).unwrap();
        let read = FeatureStore::open(&path).unwrap();
        assert_eq!(read, store);
        assert_eq!(read.get("b", 1), Some(&[1.0, 2.0, 3.0][..]));
        assert_eq!((read.get("a", 2), read.get("c", 1)), (None, None));
        assert!(store.insert("d".into(), vec![1.0; 4]).is_err());
        read.fits(ImageFeature::Class).unwrap();
    }

    #[test]
    fn features_of_patches_are_not_taken_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.safetensors");
        let patches = |grid| ImageFeature::Patches { grid };
        let mut store = FeatureStore::new("tower", patches(2), 10);
        store.insert("a".into(), vec![1.0; 20]).unwrap();
        store.save(&path).unwrap();
        let read = FeatureStore::open(&path).unwrap();
        assert_eq!((read.feature(), read.get("a", 2).map(<[f32]>::len)), (patches(2), Some(20)));
        read.fits(patches(2)).unwrap();
        let error = read.fits(ImageFeature::Class).unwrap_err().to_string();
        assert!(error.contains("of the class token but found those of patches in a grid of 2 x 2\nmake "), "{error}");
        let error = read.fits(patches(1)).unwrap_err().to_string();
        assert!(error.contains("of patches in a grid of 1 x 1 but found those of patches in a grid of 2"), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        let tensors = BTreeMap::from([("a".to_string(), raw(&[1.0; 4], &[2, 2]))]);
        let write = |metadata: &[(&str, &str)]| {
            let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            write_safetensors(&tensors, &metadata, &mut fs::File::create(&path).unwrap()).unwrap();
            FeatureStore::open(&path).unwrap_err().to_string()
        };
        assert!(write(&[]).contains("expected `feature_size` in the metadata but found none"));
        assert!(write(&[(TOWER, "t"), (WIDTH, "3")]).contains("expected `a` to have shape [1, 3] but found [2, 2]"));
        assert!(write(&[(TOWER, "t"), (WIDTH, "0")]).contains("expected `feature_size` to be a positive number"));
        let grid = |grid, width| write(&[(TOWER, "t"), (WIDTH, width), ("patch_grid", grid)]);
        assert!(grid("0", "2").contains("expected `patch_grid` to be a number from 1 to 64 but found `0`"));
        assert!(grid("2", "12").contains("expected `feature_size` to be a multiple of its 5 vectors but found 12"));
    }

    #[test]
    fn a_tower_is_its_weights_and_its_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "weights");
        let first = tower_hash(folder.path()).unwrap();
        write("README.md", "not part of it");
        assert_eq!(tower_hash(folder.path()).unwrap(), first);
        write("preprocessor_config.json", "{}");
        assert_ne!(tower_hash(folder.path()).unwrap(), first);
    }
}

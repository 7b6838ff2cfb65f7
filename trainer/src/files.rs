//! The file system, which the library does not know: positioned reads, bundle folders, writes that are whole or absent.

pub mod clip;
pub mod hugging_face;
pub mod torch;
mod write;

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rscapret::{
    Context, Error, Result,
    bundle::{Bundle, FileEntry, MANIFEST, Verifier, bundle_id},
    weights::ByteSource,
};
use sha2::{Digest, Sha256};

pub use write::{copy_atomic, link, write_atomic};
pub(crate) use write::{expect_writable, unwritable};

/// Most bytes of a bundle's manifest: real ones have a few thousand.
const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// A file on disk, read where it is asked for.
#[derive(Debug)]
pub struct FileSource {
    /// One reader at a time: a read is a seek and a read.
    file: Mutex<File>,
    len: u64,
    path: PathBuf,
}

impl FileSource {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Io`] with the path: absent, not permitted, or no regular file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let open = || {
            // Asked before opening, which would wait for ever on a pipe that nobody writes to.
            let kind = std::fs::metadata(&path).map_err(unreadable)?;
            if !kind.is_file() {
                let found = if kind.is_dir() { "a folder" } else { "something else" };
                return Err(Error::Io(format!("expected a file but found {found}")));
            }
            let file = File::open(&path).map_err(unreadable)?;
            let len = file.metadata().map_err(unreadable)?.len();
            Ok((file, len))
        };
        let (file, len) = open().at(path.display())?;
        Ok(FileSource { file: Mutex::new(file), len, path })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether these are its first bytes.
    ///
    /// # Errors
    /// [`Error::Io`] with the path.
    pub fn begins_with(&self, magic: &[u8]) -> Result<bool> {
        Ok(self.len >= magic.len() as u64 && self.read_at(0, magic.len()).at(self.path.display())? == magic)
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        // Before memory is taken for it.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(Error::Malformed(format!(
                "expected {len} bytes at offset {offset} but found the end at {}",
                self.len
            )));
        }
        // A panic elsewhere leaves no position that matters: every read seeks.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; len];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(unreadable)?;
        Ok(bytes)
    }
}

impl ByteSource for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read_at(offset, len).at(self.path.display())
    }
}

/// Reads a whole regular file of at most `most` bytes.
///
/// # Errors
/// [`Error::Io`] with the path; [`Error::Unsupported`] for a longer file, of which nothing is read.
pub fn read_whole(path: &Path, most: u64) -> Result<Vec<u8>> {
    let source = FileSource::open(path)?;
    let len = usize::try_from(source.len).ok().filter(|_| source.len <= most);
    let len = len
        .ok_or_else(|| Error::Unsupported(format!("expected a file of at most {most} bytes but found {}", source.len)));
    len.and_then(|len| source.read_at(0, len)).at(path.display())
}

/// Length and digest of a file, read once, a piece at a time.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn describe(path: &Path, name: &str) -> Result<FileEntry> {
    let source = FileSource::open(path)?;
    let mut hash = Sha256::new();
    for offset in (0..source.len).step_by(PIECE) {
        let len = (source.len - offset).min(PIECE as u64) as usize;
        hash.update(source.read_at(offset, len).at(path.display())?);
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileEntry { path: name.into(), bytes: source.len, sha256 })
}

/// A bundle's folder, checked.
#[derive(Debug)]
pub struct BundleFolder {
    /// `bundle.json`.
    pub manifest: Bundle,
    /// SHA-256 of `bundle.json`, which retrieval indexes carry.
    pub id: String,
    /// Language model and tokenizer.
    pub llm: FileSource,
    /// Vision tower.
    pub vision: FileSource,
    /// Trained maps.
    pub projections: FileSource,
}

/// Opens a bundle: reads the manifest, and every file once, to check its length and digest.
///
/// # Errors
/// [`Error::Hash`] or [`Error::Malformed`] for a file that is not the manifest's, [`Error::Io`] for one that cannot be
/// read; those of [`Bundle::parse`]; all with the path.
pub fn open_bundle(folder: &Path) -> Result<BundleFolder> {
    let (manifest, id) = read_manifest(folder)?;
    let open = |entry: &FileEntry| {
        let source = FileSource::open(folder.join(&entry.path))?;
        // The verifier's errors begin with the file's name.
        verify(entry, &source).at(folder.display())?;
        Ok::<_, Error>(source)
    };
    let (llm, vision) = (open(&manifest.files.llm)?, open(&manifest.files.vision)?);
    let projections = open(&manifest.files.projections)?;
    Ok(BundleFolder { manifest, id, llm, vision, projections })
}

/// A bundle's manifest and id; its other files are not looked at.
///
/// # Errors
/// As [`open_bundle`].
pub fn read_manifest(folder: &Path) -> Result<(Bundle, String)> {
    let path = folder.join(MANIFEST);
    if folder.is_dir() && !path.exists() {
        return Err(Error::Io(format!(
            "expected a bundle but found no {MANIFEST}\na bundle is the folder that `rscapret export` writes, such as models/demo"
        )))
        .at(folder.display());
    }
    let json = read_whole(&path, MAX_MANIFEST)?;
    Ok((Bundle::parse(&json).at(path.display())?, bundle_id(&json)))
}

fn verify(entry: &FileEntry, source: &FileSource) -> Result<()> {
    let mut verifier = Verifier::new(entry);
    let mut offset = 0;
    // One byte more than expected shows that there are more.
    let end = source.len.min(entry.bytes.saturating_add(1));
    while offset < end {
        let len = (end - offset).min(PIECE as u64) as usize;
        verifier.update(&source.read_at(offset, len)?)?;
        offset += len as u64;
    }
    verifier.finish()
}

/// What a file of another kind begins with.
pub(crate) fn beginning(bytes: &[u8]) -> String {
    match bytes {
        [] => "no bytes".into(),
        bytes => format!("bytes that begin with {:02x?}", &bytes[..bytes.len().min(8)]),
    }
}

/// What kept a file from being read.
pub(crate) fn unreadable(error: std::io::Error) -> Error {
    Error::Io(format!("expected a readable file but found: {error}"))
}

#[cfg(test)]
mod tests {
    use rscapret::bundle::{FORMAT_VERSION, Files, Licence, Training};

    use super::*;

    fn bundle(folder: &Path) -> Bundle {
        let files = [("llm.gguf", vec![7; PIECE + 5]), ("vision.gguf", vec![1]), ("projections.safetensors", vec![2])];
        let [llm, vision, projections] = files.map(|(name, bytes)| {
            std::fs::write(folder.join(name), &bytes).unwrap();
            FileEntry::of(name, &bytes)
        });
        let manifest = Bundle {
            format_version: FORMAT_VERSION,
            name: "small".into(),
            files: Files { llm, vision, projections },
            licences: vec![Licence { part: "all".into(), terms: "MIT".into() }],
            training: Training::default(),
            notes: String::new(),
        };
        std::fs::write(folder.join(MANIFEST), manifest.to_json().unwrap()).unwrap();
        manifest
    }

    #[test]
    fn reads_what_is_asked_and_nothing_beyond_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        std::fs::write(&path, b"0123456789").unwrap();
        let source = FileSource::open(&path).unwrap();
        let read = |offset, len| pollster::block_on(source.read(offset, len));
        assert_eq!((source.len(), read(3, 4).unwrap(), read(10, 0).unwrap()), (10, b"3456".to_vec(), vec![]));
        for (offset, len) in [(8, 3), (u64::MAX, 1), (0, usize::MAX)] {
            let error = read(offset, len).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: expected {len} bytes at offset", path.display())), "{error}");
        }
        assert!(
            FileSource::open(folder.path()).unwrap_err().to_string().ends_with("expected a file but found a folder")
        );
        assert!(read_whole(&path, 9).unwrap_err().to_string().ends_with("at most 9 bytes but found 10"));
        assert_eq!(read_whole(&path, 10).unwrap(), b"0123456789");
    }

    #[test]
    fn a_bundle_is_opened_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = bundle(folder.path());
        let open = || open_bundle(folder.path());
        let opened = open().unwrap();
        assert_eq!(opened.manifest, manifest);
        assert_eq!(opened.id, bundle_id(&manifest.to_json().unwrap()));

        let llm = folder.path().join("llm.gguf");
        let good = std::fs::read(&llm).unwrap();
        let mut flipped = good.clone();
        flipped[PIECE + 1] ^= 1;
        std::fs::write(&llm, &flipped).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error.root(), Error::Hash { .. }));
        assert!(error.to_string().starts_with(&format!("{}: llm.gguf: expected sha256", folder.path().display())));
        for wrong in [&good[..PIECE], &[&good[..], &[7; 9]].concat()] {
            std::fs::write(&llm, wrong).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(&format!("llm.gguf: expected {} bytes but found", good.len())), "{error}");
        }
        std::fs::remove_file(&llm).unwrap();
        assert!(open().unwrap_err().to_string().contains("llm.gguf: expected a readable file but found: "));
        std::fs::remove_file(folder.path().join(MANIFEST)).unwrap();
        assert!(open().unwrap_err().to_string().contains("expected a bundle but found no bundle.json"));
    }
}

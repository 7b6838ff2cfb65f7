//! The bundle: a folder that the page and the program load.
//!
//! ```text
//! bundle.json              this manifest: files with sizes and digests, licences, what was trained with what
//! llm.gguf                 llama-architecture GGUF with its tokenizer
//! vision.gguf              CLIP vision tower
//! projections.safetensors  the trained maps; its metadata names the two files above by digest
//! ```

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{Context, Error, Result},
    weights::plain_file_name,
};

/// The manifest's own name.
pub const MANIFEST: &str = "bundle.json";

/// The format that this library reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What people call it.
    pub name: String,
    /// The model's files.
    pub files: Files,
    /// Terms of the parts; never empty.
    pub licences: Vec<Licence>,
    /// How the projections came about.
    pub training: Training,
    /// Anything else, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

/// The three files of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Language model and tokenizer, GGUF.
    pub llm: FileEntry,
    /// CLIP vision tower, GGUF.
    pub vision: FileEntry,
    /// Trained maps, safetensors.
    pub projections: FileEntry,
}

impl Files {
    /// The files with their names in the manifest.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &FileEntry)> {
        [("llm", &self.llm), ("vision", &self.vision), ("projections", &self.projections)].into_iter()
    }
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Plain file name, beside the manifest.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl FileEntry {
    /// Describes a file at hand.
    pub fn of(path: impl Into<String>, bytes: &[u8]) -> Self {
        FileEntry { path: path.into(), bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    }
}

/// Terms of a part of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// What it covers: a file, a data set.
    pub part: String,
    /// SPDX expression, or the terms in words.
    pub terms: String,
}

/// How the projections came about, and the models that they join where those were trained here, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The trainer's configuration, as text.
    pub config: String,
    /// Data sets and splits.
    pub data: Vec<String>,
    /// Commit of the trainer.
    pub commit: String,
    /// Of the language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<Origin>,
    /// Of the vision tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<Origin>,
}

/// How one model came about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The trainer's configuration, as text.
    pub config: String,
    /// Data sets and splits.
    pub data: Vec<String>,
    /// Commit of the trainer.
    pub commit: String,
}

impl Bundle {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another format version; [`Error::Malformed`] for anything else that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self> {
        // The version first: another format's unknown fields would hide it.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let wrong = |e: serde_json::Error| Error::Malformed(format!("expected a bundle manifest but found {e}"));
        let Version { format_version } = serde_json::from_slice(json).map_err(wrong)?;
        if format_version != FORMAT_VERSION {
            let remedy = match format_version > FORMAT_VERSION {
                true => "the bundle was made by a newer version: update this program",
                false => "export the bundle again with this version's `rscapret export`",
            };
            return Err(Error::Unsupported(format!(
                "expected bundle format {FORMAT_VERSION} but found {format_version}\n{remedy}"
            )));
        }
        let bundle: Bundle = serde_json::from_slice(json).map_err(wrong)?;
        bundle.validate()?;
        Ok(bundle)
    }

    /// The manifest's bytes, checked: what [`Bundle::parse`] reads.
    ///
    /// # Errors
    /// [`Error::Malformed`] where [`Bundle::parse`] would refuse it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.validate()?;
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::Malformed(e.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    fn validate(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Malformed(message));
        if self.name.trim().is_empty() {
            return wrong("expected `name` but found it empty".into());
        }
        if self.licences.is_empty() {
            return wrong("expected `licences` but found none".into());
        }
        let mut seen = vec![MANIFEST];
        for (role, file) in self.files.iter() {
            let check = || {
                plain_file_name(&file.path)?;
                if seen.iter().any(|name| name.eq_ignore_ascii_case(&file.path)) {
                    return wrong(format!("expected a file of its own but found `{}` again", file.path));
                }
                if file.bytes == 0 {
                    return wrong(format!("expected `{}` to have bytes but found 0", file.path));
                }
                if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return wrong(format!(
                        "expected `sha256` to be 64 lower-case hexadecimal digits but found `{}`",
                        file.sha256.escape_debug()
                    ));
                }
                Ok(())
            };
            check().at(format_args!("files.{role}"))?;
            seen.push(&file.path);
        }
        Ok(())
    }
}

/// A bundle's identity, the SHA-256 of its manifest: retrieval indexes carry it, for they hold only within one bundle.
pub fn bundle_id(manifest: &[u8]) -> String {
    sha256_hex(manifest)
}

/// Checks a whole file against its entry.
///
/// # Errors
/// [`Error::Malformed`] for another length, [`Error::Hash`] for another digest; both with the file's name.
pub fn verify(entry: &FileEntry, bytes: &[u8]) -> Result<()> {
    let mut verifier = Verifier::new(entry);
    verifier.update(bytes)?;
    verifier.finish()
}

/// Checks a file while it arrives.
#[derive(Debug, Clone)]
pub struct Verifier {
    entry: FileEntry,
    digest: Sha256,
    bytes: u64,
}

impl Verifier {
    /// Expects the file of this entry.
    pub fn new(entry: &FileEntry) -> Self {
        Verifier { entry: entry.clone(), digest: Sha256::new(), bytes: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] as soon as the file is longer than its entry says.
    pub fn update(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.entry.bytes {
            return Err(self.wrong_length(format!("{} or more", self.bytes)));
        }
        self.digest.update(bytes);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn finish(self) -> Result<()> {
        if self.bytes != self.entry.bytes {
            return Err(self.wrong_length(self.bytes.to_string()));
        }
        let found = hex(&self.digest.finalize());
        if found != self.entry.sha256 {
            return Err(Error::Hash { expected: self.entry.sha256, found }).at(&self.entry.path);
        }
        Ok(())
    }

    fn wrong_length(&self, found: String) -> Error {
        let source = Error::Malformed(format!(
            "expected {} bytes but found {found}\nthe file is cut short or from another bundle: fetch it again",
            self.entry.bytes
        ));
        Error::At { context: self.entry.path.clone(), source: Box::new(source) }
    }
}

/// SHA-256, lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn verifier_works_in_pieces() {
        let entry = FileEntry::of("a.bin", b"hello world");
        let mut v = Verifier::new(&entry);
        v.update(b"hello ").unwrap();
        let short = v.clone().finish().unwrap_err().to_string();
        assert!(short.starts_with("a.bin: expected 11 bytes but found 6\n"), "{short}");
        v.update(b"world").unwrap();
        v.clone().finish().unwrap();
        assert!(v.update(b"!").is_err());
        assert!(matches!(verify(&entry, b"hello wOrld").unwrap_err().root(), Error::Hash { .. }));
    }
}

//! What an evaluation has done, image by image: one that was stopped goes on where it was.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use rscapret::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    dataset::ImageId,
    files::{unreadable, unwritable},
};

/// The file of it in the folder of the scores; gone when these are there.
const NAME: &str = "begun.jsonl";

/// What the models said of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// In the joint space (J).
    pub embedding: Vec<f32>,
    /// One a way of decoding.
    pub captions: Vec<String>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    dataset: String,
    image_id: ImageId,
    #[serde(flatten)]
    answer: Answer,
}

/// Answers of before, and where new ones are kept.
pub struct Begun {
    path: PathBuf,
    file: File,
    answers: HashMap<(String, ImageId), Answer>,
}

impl Begun {
    /// Begins one in `folder`, whose scores are those of `what`; or goes on with the one that is there, if that is to be
    /// resumed.
    ///
    /// # Errors
    /// [`Error::Config`] for one that was begun and is not to be resumed, or was one of something else; [`Error::Io`] for a
    /// folder that cannot be written.
    pub fn open(folder: &Path, what: &Value, resume: bool) -> Result<Self> {
        fs::create_dir_all(folder).map_err(unwritable).at(folder.display())?;
        let path = folder.join(NAME);
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(unreadable).at(path.display())?,
        };
        // A line that a kill cut has no end; where there is but the first line, nothing was done.
        let whole = &before[..before.rfind('\n').map_or(0, |end| end + 1)];
        let whole = if whole.lines().count() > 1 { whole } else { "" };
        let mut lines = whole.lines();
        let mut answers = HashMap::new();
        if let Some(head) = lines.next() {
            if !resume {
                return Err(Error::Config(
                    "expected no evaluation here that was begun but found one\ngo on with it by --resume, or delete this file"
                        .into(),
                ))
                .at(path.display());
            }
            if serde_json::from_str(head).ok().as_ref() != Some(what) {
                return Err(Error::Config(format!(
                    "expected an evaluation of {what} but found one of {head}\nname another folder with --out, or delete this file"
                )))
                .at(path.display());
            }
            for line in lines {
                let Line { dataset, image_id, answer } = serde_json::from_str(line)
                    .map_err(|e| Error::Malformed(format!("expected an image's captions but found {e}")))
                    .at(path.display())?;
                answers.insert((dataset, image_id), answer);
            }
        }
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = file.and_then(|file| file.set_len(whole.len() as u64).map(|()| file));
        let mut begun = Begun { file: file.map_err(unwritable).at(path.display())?, path, answers };
        begun.file.seek(SeekFrom::End(0)).map_err(unwritable).at(begun.path.display())?;
        if whole.is_empty() {
            begun.write(what)?;
        }
        Ok(begun)
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(|e| Error::Io(e.to_string()))?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).map_err(unwritable).at(self.path.display())
    }

    /// The answer of before, for an image that has one.
    pub fn take(&mut self, dataset: &str, image_id: &ImageId) -> Option<Answer> {
        self.answers.remove(&(dataset.to_string(), image_id.clone()))
    }

    /// Keeps a new answer.
    ///
    /// # Errors
    /// A full disk; what was kept before stays.
    pub fn keep(&mut self, dataset: &str, image_id: &ImageId, answer: &Answer) -> Result<()> {
        let (dataset, image_id, answer) = (dataset.to_string(), image_id.clone(), answer.clone());
        self.write(&Line { dataset, image_id, answer })
    }

    /// Removes the file, for the scores are there.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn end(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(unwritable).at(self.path.display())
    }
}

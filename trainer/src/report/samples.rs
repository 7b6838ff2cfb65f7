//! `samples.jsonl`: what a run's model said of a few validation images, as it learned.

use std::path::{Path, PathBuf};

use rscapret::{Context, Error, Result};
use serde::{Deserialize, Serialize};

use crate::files::unreadable;

/// One image at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Steps done.
    pub step: u64,
    /// Where the image lies.
    pub image: PathBuf,
    /// What the model says.
    pub caption: String,
    /// What people wrote.
    pub references: Vec<String>,
}

/// The samples of a run; none where there is no such file. A last line that a kill cut short is left out.
///
/// # Errors
/// With the path and the line: another line that is no sample.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(unreadable).at(path.display())?;
    let lines: Vec<&str> = text.lines().collect();
    let mut samples = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(sample) => samples.push(sample),
            Err(_) if at + 1 == lines.len() && !text.ends_with('\n') => {}
            Err(error) => {
                return Err(Error::Malformed(format!("line {}: expected a sample but found: {error}", at + 1)))
                    .at(path.display());
            }
        }
    }
    Ok(samples)
}

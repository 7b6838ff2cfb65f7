//! The album of a bundle: pictures that are there from the start.

use rscapret::{Context, Error, Result};
use serde::Deserialize;

use super::fetch::Fetch;

/// An entry of `album/album.json`.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// File name, beside the list.
    pub file: String,
}

/// The pictures that the bundle at `base` brings.
///
/// # Errors
/// When the list cannot be had or names anything but plain files.
pub async fn list(base: &str) -> Result<Vec<Entry>> {
    let url = format!("{base}album/album.json");
    let entries: Vec<Entry> = serde_json::from_slice(&Fetch::begin(url.clone()).whole().await?)
        .map_err(|e| Error::Malformed(format!("expected a list of pictures but found {e}")))
        .at(&url)?;
    for Entry { file } in &entries {
        let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && !file.starts_with('.');
        if !plain || file.is_empty() {
            return Err(Error::Malformed(format!("expected a plain file name but found `{}`", file.escape_debug())))
                .at(&url);
        }
    }
    Ok(entries)
}

/// Asks for one picture.
pub fn picture(base: &str, entry: &Entry) -> Fetch {
    Fetch::begin(format!("{base}album/{}", entry.file))
}

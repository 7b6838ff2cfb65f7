//! A dataset's table in the TOML, and the way from it to the items.

use std::fs;
use std::path::{Path, PathBuf};

use rscapret::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::{Builder, kind};
use super::pictures::open_pictures;
use super::{Dataset, Refusals, Split, coco, karpathy, nwpu, rows, sydney};
use crate::files::beginning;

/// One dataset of a configuration. Paths are taken as they are: relative ones from the working folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// What reports call it.
    pub name: String,
    /// The annotations' layout; told from their structure when absent.
    pub format: Option<Format>,
    /// The JSON, or the text layout's file of descriptions.
    pub annotations: PathBuf,
    /// Folder of the images. Absent: the captions alone are used, and no file is looked for.
    pub images: Option<PathBuf>,
    /// Split of a COCO file, which holds one and does not say which; or of a table's rows that do not say theirs.
    pub split: Option<Split>,
    /// Replaces the extension of every image name: UCM's JSON says `1.tif` where the files are `1.jpg`.
    pub extension: Option<String>,
    /// How often items are drawn, relative to the other datasets.
    #[serde(default = "one")]
    pub weight: f64,
    /// Largest share of items, 0 to 1, that may be refused before the dataset is.
    #[serde(default)]
    pub max_refused: f64,
}

fn one() -> f64 {
    1.0
}

/// Layout of the annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `{images: [{filename, imgid, split, sentences: [{raw}]}]}`: RSICD, UCM, Sydney.
    Karpathy,
    /// `{class: [{filename, imgid, split, raw, raw_1, … raw_4}]}`.
    Nwpu,
    /// `{images: [{id, file_name}], annotations: [{image_id, caption}]}`.
    Coco,
    /// `<id> <caption>` lines, with `filenames_{train,val,test}.txt` beside them.
    SydneyText,
    /// A table with a header: columns `file_name`, `caption` and `split` (or other usual names); tabs in a `.tsv`.
    Csv,
    /// The same, a JSON object a line.
    Jsonl,
}

impl DatasetConfig {
    /// Captions of `annotations` alone, layout told from the structure, nothing refused silently.
    pub fn captions_only(name: impl Into<String>, annotations: impl Into<PathBuf>) -> Self {
        DatasetConfig {
            name: name.into(),
            format: None,
            annotations: annotations.into(),
            images: None,
            split: None,
            extension: None,
            weight: 1.0,
            max_refused: 0.0,
        }
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.max_refused) {
            return Err(Error::Config(format!("expected `max_refused` from 0 to 1 but found {}", self.max_refused)));
        }
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return Err(Error::Config(format!("expected `weight` to be a positive number but found {}", self.weight)));
        }
        match &self.images {
            Some(folder) if !folder.is_dir() => Err(Error::Config(format!(
                "expected a folder of images but found none at `{}`\nleave `images` out to use the captions alone",
                folder.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// Reads a dataset: the usable items, and what was refused and why.
///
/// # Errors
/// When a file cannot be read or is not of its layout, when the configuration has impossible values, when nothing is
/// usable, or when more than `max_refused` of the items are refused (the first few are named).
pub fn load(config: &DatasetConfig) -> Result<(Dataset, Refusals)> {
    config.check().at(format!("dataset `{}`", config.name))?;
    read(config).and_then(|out| out.finish()).at(config.annotations.display())
}

/// As [`load`], whatever the share of refused items; a dataset may be empty.
pub(crate) fn load_unlimited(config: &DatasetConfig) -> Result<(Dataset, Refusals)> {
    config.check().at(format!("dataset `{}`", config.name))?;
    Ok(read(config).at(config.annotations.display())?.into_parts())
}

fn read(config: &DatasetConfig) -> Result<Builder<'_>> {
    let bytes = read_file(&config.annotations)?;
    let mut out = Builder::new(config);
    match config.format.or_else(|| Format::by_extension(&config.annotations)) {
        Some(Format::Csv) => {
            rows::read_csv(&bytes, &config.annotations, config.split, &mut out)?;
            return Ok(out);
        }
        Some(Format::Jsonl) => {
            rows::read_jsonl(&bytes, config.split, &mut out)?;
            return Ok(out);
        }
        _ => {}
    }
    let starts_as_json = matches!(bytes.iter().find(|byte| !byte.is_ascii_whitespace()), Some(b'{' | b'['));
    let format =
        config.format.or_else(|| (!starts_as_json && is_text(&config.annotations)).then_some(Format::SydneyText));
    if format == Some(Format::SydneyText) {
        sydney::read(&bytes, &config.annotations, &mut out)?;
        return Ok(out);
    }
    let root: Value = serde_json::from_slice(&bytes).map_err(|error| match starts_as_json {
        true => Error::Malformed(format!("expected a JSON dataset but found {error}")),
        false => Error::Malformed(format!(
            "expected a dataset (JSON, .csv, .tsv, .jsonl, or Sydney's text in a .txt) but found {}",
            beginning(&bytes)
        )),
    })?;
    let found = Format::detect(&root)?;
    match config.format {
        Some(format) if format != found => {
            return Err(Error::Malformed(format!("expected the layout of {format:?} but found that of {found:?}")));
        }
        _ => {}
    }
    match found {
        Format::Coco => coco::read(root, config.split, &mut out)?,
        Format::Nwpu => nwpu::read(root, &mut out)?,
        // Text and tables, which `detect` never finds, were read above.
        Format::Karpathy | Format::SydneyText | Format::Csv | Format::Jsonl => karpathy::read(root, &mut out)?,
    }
    Ok(out)
}

impl Format {
    /// Layout of tables, which their names tell.
    fn by_extension(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" | "tsv" => Some(Format::Csv),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            _ => None,
        }
    }

    /// Layout of a JSON document, by its structure.
    fn detect(root: &Value) -> Result<Format> {
        let Value::Object(fields) = root else {
            return Err(Error::Malformed(format!("expected a dataset object but found {}", kind(root))));
        };
        match (fields.contains_key("images"), fields.contains_key("annotations")) {
            (true, true) => Ok(Format::Coco),
            (true, false) => Ok(Format::Karpathy),
            _ if fields.values().any(Value::is_array) => Ok(Format::Nwpu),
            _ => Err(Error::Malformed(
                "expected `images` (Karpathy, COCO) or lists of images by class (NWPU) but found neither".to_string(),
            )),
        }
    }
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
}

/// A whole file.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::Io(format!("expected a readable file but found: {error}")))
}

/// As [`load`], with pictures that cannot be decoded refused, too, as `rscapret data check` does: training would meet them
/// hours later. What was refused is told on standard error: the count and the first three.
///
/// # Errors
/// As [`load`].
pub fn load_listed(config: &DatasetConfig) -> Result<Dataset> {
    let (mut dataset, mut refusals) = load(config)?;
    open_pictures(&mut dataset, &mut refusals, |_| (), || ());
    refusals.allow(&dataset, config.max_refused).at(config.annotations.display())?;
    if refusals.items() > 0 {
        let (refused, seen) = (refusals.items(), refusals.seen);
        eprintln!("{}: {refused} of {seen} items left out\n{}", config.name, refusals.first(3));
    }
    Ok(dataset)
}

//! Data of one's own: a folder of images and a table beside it, as CSV, TSV or JSON Lines, one row a caption or an image.
//!
//! Columns: the image's name (`file_name`, `filename`, `file` or `image`), a caption (`caption`, `text` or `raw`; further
//! ones in `caption_1`, `caption_2`, ...; in JSON Lines also a list), and where wanted `split`, `id` and `class`. Rows of
//! one image belong together. The `metadata.csv` and `metadata.jsonl` of Hugging Face's ImageFolder are such tables.

use std::{collections::HashMap, path::Path};

use rscapret::{Error, Result};
use serde_json::{Map, Value};

use super::{
    ImageId, Reason, Split,
    build::{Builder, Draft, kind},
};

const FILE: [&str; 4] = ["file_name", "filename", "file", "image"];
const CAPTION: [&str; 3] = ["caption", "text", "raw"];

/// Rows that were read, images in the order of their first row.
struct Images<'a, 'b> {
    out: &'a mut Builder<'b>,
    default_split: Option<Split>,
    drafts: Vec<Draft>,
    at: HashMap<String, usize>,
}

/// CSV with a header, or TSV by the file's name.
pub fn read_csv(bytes: &[u8], path: &Path, default_split: Option<Split>, out: &mut Builder) -> Result<()> {
    let tabs = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
    // A byte order mark, which spreadsheets write, is no part of the first column's name.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new().delimiter(if tabs { b'\t' } else { b',' }).from_reader(bytes);
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(|name| name.trim().to_string()).collect(),
        Err(error) => return Err(Error::Malformed(format!("expected a header of columns but found {error}"))),
    };
    check_columns(|name| header.iter().any(|column| column == name), default_split, || header.join("`, `"))?;
    let mut images = Images { out, default_split, drafts: Vec::new(), at: HashMap::new() };
    for (index, record) in reader.records().enumerate() {
        let row = record.map_err(|error| error.to_string()).map(|record| {
            let cells = header.iter().cloned().zip(record.iter().map(|cell| Value::from(cell.trim())));
            // An empty cell says nothing, but the caption of a row that has none is one that is refused.
            cells.filter(|(column, cell)| CAPTION.contains(&column.as_str()) || cell != "").collect()
        });
        images.row(format!("row {}", index + 1), row);
    }
    images.finish();
    Ok(())
}

/// A JSON object a line.
pub fn read_jsonl(bytes: &[u8], default_split: Option<Split>, out: &mut Builder) -> Result<()> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::Malformed(format!("expected UTF-8 text but found {error}")))?;
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if let Some(Ok(Value::Object(first))) = lines().next().map(|(_, line)| serde_json::from_str(line)) {
        let names = || first.keys().cloned().collect::<Vec<_>>().join("`, `");
        check_columns(|name| first.contains_key(name), default_split, names)?;
    }
    let mut images = Images { out, default_split, drafts: Vec::new(), at: HashMap::new() };
    for (index, line) in lines() {
        let row = match serde_json::from_str(line) {
            Ok(Value::Object(row)) => Ok(row),
            Ok(other) => Err(format!("expected an object but found {}", kind(&other))),
            Err(error) => Err(error.to_string()),
        };
        images.row(format!("line {}", index + 1), row);
    }
    images.finish();
    Ok(())
}

/// One wrong column is one error, not a refusal of every row.
fn check_columns(has: impl Fn(&str) -> bool, split: Option<Split>, found: impl Fn() -> String) -> Result<()> {
    for (what, names) in [("the image's name", &FILE[..]), ("a caption", &CAPTION[..])] {
        let numbered = names.contains(&"caption") && has("caption_1");
        if !numbered && !names.iter().any(|name| has(name)) {
            return Err(Error::Malformed(format!(
                "expected a column with {what} (`{}`) but found `{}`",
                names.join("` or `"),
                found()
            )));
        }
    }
    if split.is_none() && !has("split") {
        return Err(Error::Config(format!(
            "expected a column `split`, or `split` in the configuration, but found `{}`\n\
             say what the images are for: split = \"train\", \"val\" or \"test\"",
            found()
        )));
    }
    Ok(())
}

fn is_caption(column: &str) -> bool {
    let number = column.strip_prefix("caption_");
    CAPTION.contains(&column) || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

impl Images<'_, '_> {
    fn row(&mut self, place: String, row: Result<Map<String, Value>, String>) {
        let row = match row {
            Ok(row) => row,
            Err(why) => return self.out.refuse(place, Reason::Malformed(why)),
        };
        let name = FILE.iter().find_map(|&column| row.get(column)).and_then(Value::as_str);
        let Some(file) = name.map(str::to_string) else {
            return self.out.refuse(place, Reason::Malformed("expected the image's name but found none".to_string()));
        };
        match self.draft(&file, row) {
            Err(why) => self.out.refuse(format!("{file} ({place})"), Reason::Malformed(why)),
            Ok(None) => self.out.refuse(file, Reason::NoSplit),
            Ok(Some(draft)) => match self.at.get(&file).map(|&at| &mut self.drafts[at]) {
                None => {
                    self.at.insert(file, self.drafts.len());
                    self.drafts.push(draft);
                }
                // An image on both sides of the test is no detail: the row is not taken.
                Some(first) if first.split != draft.split => {
                    let (expected, found) = (first.split, draft.split);
                    let why = format!("expected split {expected} as in the image's first row but found {found}");
                    self.out.refuse(format!("{file} ({place})"), Reason::MalformedCaption(why));
                }
                Some(first) => first.captions.extend(draft.captions),
            },
        }
    }

    /// The row's record; `None` without a split.
    fn draft(&self, file: &str, row: Map<String, Value>) -> Result<Option<Draft>, String> {
        let field = |name: &str| row.get(name).filter(|value| !value.is_null()).cloned();
        let parse = |name: &str, error: serde_json::Error| format!("`{name}`: {error}");
        let split = field("split").map(serde_json::from_value::<Split>).transpose().map_err(|e| parse("split", e))?;
        let id = field("id").map(serde_json::from_value::<ImageId>).transpose().map_err(|e| parse("id", e))?;
        let class = field("class").map(serde_json::from_value::<String>).transpose().map_err(|e| parse("class", e))?;
        let mut captions = Vec::new();
        for (column, value) in &row {
            match value {
                _ if !is_caption(column) => {}
                Value::Null => {}
                Value::String(text) => captions.push(text.clone()),
                Value::Array(list) => {
                    for value in list {
                        let text = value.as_str().ok_or_else(|| format!("`{column}`: found {}", kind(value)))?;
                        captions.push(text.to_string());
                    }
                }
                other => return Err(format!("`{column}`: expected text or a list but found {}", kind(other))),
            }
        }
        Ok(split.or(self.default_split).map(|split| Draft {
            id: id.unwrap_or_else(|| file.into()),
            file: file.to_string(),
            split,
            captions,
            class,
        }))
    }

    fn finish(self) {
        for draft in self.drafts {
            self.out.push(draft);
        }
    }
}

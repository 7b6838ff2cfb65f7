//! What every layout has in common: the checks between a record and an [`Item`].

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use rscapret::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Dataset, DatasetConfig, ImageId, Item, Reason, Refusal, Refusals, Split};

/// A record of any layout before it is checked.
pub struct Draft {
    pub id: ImageId,
    /// As the annotations name it.
    pub file: String,
    pub split: Split,
    pub captions: Vec<String>,
    pub class: Option<String>,
}

/// 200 captions of UCM end in two full stops, which a model would learn to write: "Lots of plants on the ground. ."
fn with_one_end(caption: &str) -> &str {
    match caption.strip_suffix('.').map(|rest| (rest, rest.trim_end())) {
        Some((rest, before)) if rest != before && before.ends_with('.') => with_one_end(before),
        _ => caption,
    }
}

/// Collects items, refuses what cannot be used.
pub struct Builder<'a> {
    config: &'a DatasetConfig,
    items: Vec<Item>,
    refusals: Refusals,
    ids: HashSet<ImageId>,
    files: HashSet<PathBuf>,
}

impl<'a> Builder<'a> {
    pub fn new(config: &'a DatasetConfig) -> Self {
        let refusals = Refusals::default();
        Builder { config, items: Vec::new(), refusals, ids: HashSet::new(), files: HashSet::new() }
    }

    /// Refuses an item (counted as one that was seen) or a caption.
    pub fn refuse(&mut self, name: impl Into<String>, reason: Reason) {
        self.refusals.seen += usize::from(reason.drops_item());
        self.refusals.list.push(Refusal { name: name.into(), reason });
    }

    /// Takes the record, or refuses it.
    pub fn push(&mut self, draft: Draft) {
        match self.check(&draft) {
            Err(reason) => self.refuse(draft.file, reason),
            Ok(image) => {
                let mut captions = Vec::with_capacity(draft.captions.len());
                for (index, caption) in draft.captions.iter().enumerate() {
                    match caption.trim() {
                        "" => self.refuse(&draft.file, Reason::EmptyCaption(index)),
                        caption => captions.push(with_one_end(caption).to_string()),
                    }
                }
                self.refusals.seen += 1;
                self.ids.insert(draft.id.clone());
                self.files.insert(image.clone());
                self.items.push(Item { id: draft.id, image, split: draft.split, captions, class: draft.class });
            }
        }
    }

    /// Reason to refuse the whole record, or its file name below the image folder.
    fn check(&self, draft: &Draft) -> Result<PathBuf, Reason> {
        let mut image = PathBuf::from(&draft.file);
        let inside = image.components().all(|part| matches!(part, Component::Normal(_)));
        if image.file_name().is_none() || !inside {
            return Err(Reason::UnsafeName);
        }
        if let Some(extension) = &self.config.extension {
            image.set_extension(extension.trim_start_matches('.'));
        }
        if self.ids.contains(&draft.id) {
            return Err(Reason::DuplicateId(draft.id.clone()));
        }
        if self.files.contains(&image) {
            return Err(Reason::DuplicateFile);
        }
        if draft.captions.iter().all(|caption| caption.trim().is_empty()) {
            return Err(Reason::NoCaption);
        }
        if let Some(folder) = &self.config.images {
            check_file(&folder.join(&image))?;
        }
        Ok(image)
    }

    /// The dataset, unless it is empty or more than the configured share was refused.
    pub fn finish(self) -> Result<(Dataset, Refusals)> {
        let config = self.config;
        let (dataset, refusals) = self.into_parts();
        refusals.allow(&dataset, config.max_refused)?;
        Ok((dataset, refusals))
    }

    /// The dataset, whatever was refused.
    pub fn into_parts(self) -> (Dataset, Refusals) {
        let Builder { config, items, refusals, .. } = self;
        (Dataset { name: config.name.clone(), images: config.images.clone(), items }, refusals)
    }
}

fn check_file(path: &Path) -> Result<(), Reason> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(Reason::Unreadable("not a file".to_string())),
        Ok(meta) if meta.len() == 0 => Err(Reason::EmptyFile),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Reason::MissingFile),
        Err(error) => Err(Reason::Unreadable(error.to_string())),
    }
}

/// One record out of a JSON value; the reason in words when a field is missing or of another type.
pub fn record<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// What to call a record that cannot be read: its file name if it has one.
pub fn label(value: &Value, key: &str, place: String) -> String {
    value.get(key).and_then(Value::as_str).map_or(place, str::to_string)
}

/// Removes a list from a JSON object.
pub fn take_list(root: &mut Value, key: &str) -> Result<Vec<Value>> {
    match root.get_mut(key).map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(Error::Malformed(format!("expected `{key}` to be a list but found {}", kind(&other)))),
        None => Err(Error::Malformed(format!("expected a list `{key}` but found none of that name"))),
    }
}

/// A JSON value's type in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::with_one_end;

    #[test]
    fn a_caption_ends_once() {
        for (raw, expected) in [
            ("Lots of plants on the ground. .", "Lots of plants on the ground."),
            ("Trees . . .", "Trees ."),
            ("Trees .", "Trees ."),
            ("and so on ...", "and so on ..."),
            (". .", "."),
            ("", ""),
        ] {
            assert_eq!(with_one_end(raw), expected);
        }
    }
}

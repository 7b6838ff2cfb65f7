//! What a dataset holds but nobody can use, counted and listed.

use std::collections::BTreeMap;
use std::fmt;

use rscapret::{Error, Result};

use super::{Dataset, ImageId};

/// Why an item, or one caption of it, was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The image folder has no such file.
    MissingFile,
    /// The file is there and has no bytes.
    EmptyFile,
    /// The file system says no.
    Unreadable(String),
    /// The file is there and is no picture that can be decoded.
    BadImage(String),
    /// The name leaves the image folder (absolute, or through `..`) or is empty.
    UnsafeName,
    /// A field is missing or of another type.
    Malformed(String),
    /// No caption with text in it.
    NoCaption,
    /// In no split's list.
    NoSplit,
    /// An earlier item has this id.
    DuplicateId(ImageId),
    /// An earlier item has this image.
    DuplicateFile,
    /// This caption (counted from 0) has no text; the item's other captions stay.
    EmptyCaption(usize),
    /// A caption of an image that the file does not list.
    UnknownImage(ImageId),
    /// A caption record with a missing field or one of another type.
    MalformedCaption(String),
}

impl Reason {
    /// Whether the whole item is lost, and not just one caption.
    pub fn drops_item(&self) -> bool {
        !matches!(self, Reason::EmptyCaption(_) | Reason::UnknownImage(_) | Reason::MalformedCaption(_))
    }

    /// The reason without its details, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Reason::MissingFile => "missing file",
            Reason::EmptyFile => "empty file",
            Reason::Unreadable(_) => "unreadable file",
            Reason::BadImage(_) => "unreadable image",
            Reason::UnsafeName => "file name outside the image folder",
            Reason::Malformed(_) => "malformed item",
            Reason::NoCaption => "no caption",
            Reason::NoSplit => "in no split",
            Reason::DuplicateId(_) => "duplicate id",
            Reason::DuplicateFile => "duplicate file name",
            Reason::EmptyCaption(_) => "empty caption",
            Reason::UnknownImage(_) => "caption of an unknown image",
            Reason::MalformedCaption(_) => "malformed caption",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Reason::Unreadable(why)
            | Reason::BadImage(why)
            | Reason::Malformed(why)
            | Reason::MalformedCaption(why) => write!(f, ": {why}"),
            Reason::DuplicateId(id) | Reason::UnknownImage(id) => write!(f, " {id}"),
            Reason::EmptyCaption(index) => write!(f, " {index}"),
            _ => Ok(()),
        }
    }
}

/// One item or caption that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// File name where it is known, else the place in the file.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}`: {}", self.name, self.reason)
    }
}

/// Everything that was left out of a dataset, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Items that the file lists, usable or not.
    pub seen: usize,
    /// What was left out.
    pub list: Vec<Refusal>,
}

impl Refusals {
    /// Number of items that were left out whole.
    pub fn items(&self) -> usize {
        self.list.iter().filter(|refusal| refusal.reason.drops_item()).count()
    }

    /// Refused items as a share of all, 0 to 1.
    pub fn share(&self) -> f64 {
        self.items() as f64 / self.seen.max(1) as f64
    }

    /// Sees that what is left is enough of a dataset.
    ///
    /// # Errors
    /// [`Error::Malformed`] when nothing is left, or a larger share than `most` was refused; the first few are named.
    pub fn allow(&self, dataset: &Dataset, most: f64) -> Result<()> {
        if self.share() > most {
            return Err(Error::Malformed(format!(
                "expected at most {:.1} % of the items refused but found {} of {} ({:.1} %): {}\n\
                 mend or complete the dataset, or raise `max_refused` (now {most}) if this is all there is of it",
                100.0 * most,
                self.items(),
                self.seen,
                100.0 * self.share(),
                self.first(5),
            )));
        }
        if dataset.items.is_empty() {
            let why = if self.list.is_empty() { String::new() } else { format!(": {}", self.first(5)) };
            return Err(Error::Malformed(format!("expected at least one usable item but found none{why}")));
        }
        Ok(())
    }

    /// How many refusals there are of each kind, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for refusal in &self.list {
            *counts.entry(refusal.reason.kind()).or_insert(0) += 1;
        }
        counts
    }

    /// The first `most` refusals and how many more there are, on one line.
    pub fn first(&self, most: usize) -> String {
        let mut text = self.list.iter().take(most).map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if self.list.len() > most {
            text += &format!("; and {} more", self.list.len() - most);
        }
        text
    }
}

impl fmt::Display for Refusals {
    /// `855 of 9828 items refused: 855 missing file`; the counts of the kinds follow the colon.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of {} items refused", self.items(), self.seen)?;
        let counts: Vec<String> = self.counts().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if counts.is_empty() { Ok(()) } else { write!(f, ": {}", counts.join(", ")) }
    }
}

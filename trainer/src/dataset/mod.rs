//! Captioned images, read from the layouts in which their publishers give them.
//!
//! [`load`] takes one `[[dataset]]` table of a configuration to a [`Dataset`] and the [`Refusals`]: what could not be
//! used, and why. One bad item never ends the batch; too many of them do.

mod build;
pub mod check;
mod coco;
mod config;
mod id;
mod karpathy;
mod list;
mod nwpu;
mod pictures;
mod published;
mod record;
mod refusal;
mod rows;
mod summary;
mod sydney;

use std::fmt;
use std::path::PathBuf;

use rscapret::{Error, Result};
use serde::{Deserialize, Serialize};

pub(crate) use config::load_unlimited;
pub(crate) use config::read_file;
pub use config::{DatasetConfig, Format, load, load_listed};
pub use id::ImageId;
pub use list::read_datasets;
pub use published::{Published, published};
pub use record::{Record, same};
pub use refusal::{Reason, Refusal, Refusals};
pub use summary::{SplitSummary, Summary, summary};

/// Images with their captions, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Name given by the configuration.
    pub name: String,
    /// Folder that [`Item::image`] is relative to; `None` when only the captions are used.
    pub images: Option<PathBuf>,
    /// Every usable item; ids and image names are unique.
    pub items: Vec<Item>,
}

/// One image and what people wrote about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The publisher's id: what a COCO results file calls `image_id`.
    pub id: ImageId,
    /// File name relative to the dataset's image folder, `<class>/<file>` in NWPU's layout.
    pub image: PathBuf,
    /// What it may be used for.
    pub split: Split,
    /// At least one; as written (never the publisher's tokens), white space trimmed from both ends, none empty.
    pub captions: Vec<String>,
    /// Scene class, where the layout tells it.
    pub class: Option<String>,
}

/// What an item may be used for: learning, choosing a model, or the final figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on. Karpathy's `restval` (validation images handed to training) is read as this.
    #[serde(alias = "restval")]
    Train,
    /// Models are chosen on it.
    Val,
    /// Scored once, at the end.
    Test,
}

impl Split {
    /// All three, in the order in which tables list them.
    pub const ALL: [Split; 3] = [Split::Train, Split::Val, Split::Test];

    /// As files and the command line write it.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Dataset {
    /// Items of one split, in order.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| item.split == split)
    }

    /// Where an item's image lies.
    ///
    /// # Errors
    /// In a dataset of captions alone.
    pub fn image_path(&self, item: &Item) -> Result<PathBuf> {
        let folder = self
            .images
            .as_ref()
            .ok_or_else(|| Error::Config(format!("{}: expected `images`, the folder, but found none", self.name)))?;
        Ok(folder.join(&item.image))
    }
}

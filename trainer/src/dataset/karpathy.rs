//! Karpathy's JSON: `{images: [{filename, imgid, split, sentences: [{raw, tokens}]}], dataset}`.
//!
//! RSICD, UCM and Sydney are published so. `raw` is read and `tokens` is not: in UCM the two disagree 429 times.

use rscapret::Result;
use serde::Deserialize;
use serde_json::Value;

use super::build::{Builder, Draft, label, record, take_list};
use super::{ImageId, Reason, Split};

#[derive(Deserialize)]
struct Image {
    filename: String,
    /// Folder of the file, in the COCO and Flickr editions.
    filepath: Option<String>,
    imgid: ImageId,
    /// COCO's own id, which results files use.
    cocoid: Option<ImageId>,
    split: Split,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

pub fn read(mut root: Value, out: &mut Builder) -> Result<()> {
    for (index, value) in take_list(&mut root, "images")?.into_iter().enumerate() {
        let name = label(&value, "filename", format!("images[{index}]"));
        match record::<Image>(value) {
            Err(why) => out.refuse(name, Reason::Malformed(why)),
            Ok(image) => out.push(Draft {
                id: image.cocoid.unwrap_or(image.imgid),
                file: match image.filepath {
                    Some(folder) if !folder.is_empty() => format!("{folder}/{}", image.filename),
                    _ => image.filename,
                },
                split: image.split,
                captions: image.sentences.into_iter().map(|sentence| sentence.raw).collect(),
                class: None,
            }),
        }
    }
    Ok(())
}

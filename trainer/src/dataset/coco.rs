//! COCO's caption JSON: `{images: [{id, file_name}], annotations: [{image_id, caption}]}`.
//!
//! COCO gives each split a file of its own, so the split comes from the configuration, unless an image record has one.

use std::collections::{HashMap, HashSet};

use rscapret::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::build::{Builder, Draft, label, record, take_list};
use super::{ImageId, Reason, Split};

#[derive(Deserialize)]
struct Image {
    id: ImageId,
    file_name: String,
    split: Option<Split>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: ImageId,
    caption: String,
}

pub fn read(mut root: Value, default_split: Option<Split>, out: &mut Builder) -> Result<()> {
    let images = take_list(&mut root, "images")?;
    if default_split.is_none() && images.iter().all(|image| image.get("split").is_none()) {
        return Err(Error::Config(
            "expected `split` beside a COCO file but found none, in neither the configuration nor the images\n\
             say which it is: split = \"train\", \"val\" or \"test\""
                .to_string(),
        ));
    }
    let known: HashSet<ImageId> = images.iter().filter_map(|image| record(image.get("id")?.clone()).ok()).collect();
    let mut captions: HashMap<ImageId, Vec<String>> = HashMap::new();
    for (index, value) in take_list(&mut root, "annotations")?.into_iter().enumerate() {
        let name = format!("annotations[{index}]");
        match record::<Annotation>(value) {
            Err(why) => out.refuse(name, Reason::MalformedCaption(why)),
            Ok(Annotation { image_id, .. }) if !known.contains(&image_id) => {
                out.refuse(name, Reason::UnknownImage(image_id));
            }
            Ok(Annotation { image_id, caption }) => captions.entry(image_id).or_default().push(caption),
        }
    }
    for (index, value) in images.into_iter().enumerate() {
        let name = label(&value, "file_name", format!("images[{index}]"));
        match record::<Image>(value) {
            Err(why) => out.refuse(name, Reason::Malformed(why)),
            Ok(image) => match image.split.or(default_split) {
                None => out.refuse(name, Reason::NoSplit),
                Some(split) => out.push(Draft {
                    captions: captions.get(&image.id).cloned().unwrap_or_default(),
                    id: image.id,
                    file: image.file_name,
                    split,
                    class: None,
                }),
            },
        }
    }
    Ok(())
}

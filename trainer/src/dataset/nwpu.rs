//! NWPU-Captions' own layout: `{class: [{filename, imgid, split, raw, raw_1, … raw_4}]}`, images under
//! `<class>/<filename>`.

use rscapret::Result;
use serde::Deserialize;
use serde_json::Value;

use super::build::{Builder, Draft, kind, label, record};
use super::{ImageId, Reason, Split};

#[derive(Deserialize)]
struct Image {
    filename: String,
    imgid: ImageId,
    split: Split,
    raw: String,
    raw_1: Option<String>,
    raw_2: Option<String>,
    raw_3: Option<String>,
    raw_4: Option<String>,
}

pub fn read(root: Value, out: &mut Builder) -> Result<()> {
    let Value::Object(classes) = root else { return Ok(()) };
    for (class, list) in classes {
        let Value::Array(list) = list else {
            out.refuse(&class, Reason::Malformed(format!("expected a list of images but found {}", kind(&list))));
            continue;
        };
        for (index, value) in list.into_iter().enumerate() {
            let name = label(&value, "filename", format!("{class}[{index}]"));
            match record::<Image>(value) {
                Err(why) => out.refuse(name, Reason::Malformed(why)),
                Ok(image) => out.push(Draft {
                    id: image.imgid,
                    file: format!("{class}/{}", image.filename),
                    split: image.split,
                    captions: [Some(image.raw), image.raw_1, image.raw_2, image.raw_3, image.raw_4]
                        .into_iter()
                        .flatten()
                        .collect(),
                    class: Some(class.clone()),
                }),
            }
        }
    }
    Ok(())
}

//! Sydney-Captions' text layout: `descriptions_SYDNEY.txt` with lines `<id> <caption>`, and beside it
//! `filenames_{train,val,test}.txt` with lines `<id>.tif`.
//!
//! The ids count from 1; those of the JSON edition of the same dataset count from 0.

use std::collections::HashMap;
use std::path::Path;

use rscapret::{Context, Error, Result};

use super::build::{Builder, Draft};
use super::config::read_file;
use super::{Reason, Split};

pub fn read(bytes: &[u8], descriptions: &Path, out: &mut Builder) -> Result<()> {
    let mut files = HashMap::new();
    for split in Split::ALL {
        let path = descriptions.with_file_name(format!("filenames_{split}.txt"));
        let bytes = read_file(&path).at(path.display())?;
        for line in lines(&bytes).at(path.display())? {
            let stem = line.rsplit_once('.').map_or(line, |(stem, _)| stem).to_string();
            if files.insert(stem, (line.to_string(), split)).is_some() {
                out.refuse(line, Reason::DuplicateFile);
            }
        }
    }
    let mut order: Vec<&str> = Vec::new();
    let mut captions: HashMap<&str, Vec<String>> = HashMap::new();
    for line in lines(bytes)? {
        let (id, caption) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let of_image = captions.entry(id).or_default();
        if of_image.is_empty() {
            order.push(id);
        }
        of_image.push(caption.to_string());
    }
    for id in order {
        match files.remove(id) {
            None => out.refuse(id, Reason::NoSplit),
            Some((file, split)) => {
                let captions = captions.remove(id).unwrap_or_default();
                out.push(Draft { id: id.into(), file, split, captions, class: None });
            }
        }
    }
    let mut silent: Vec<(String, Split)> = files.into_values().collect();
    silent.sort();
    for (file, _) in silent {
        out.refuse(file, Reason::NoCaption);
    }
    Ok(())
}

fn lines(bytes: &[u8]) -> Result<impl Iterator<Item = &str>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::Malformed(format!("expected UTF-8 text but found {error}")))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()))
}

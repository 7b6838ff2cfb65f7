//! Whether a dataset's files are pictures.

use rayon::prelude::*;
use rscapret::{
    Result,
    clip::preprocess::{MAX_DECODED_BYTES, decode},
};
use sha2::{Digest, Sha256};

use super::{Dataset, Item, Reason, Refusal, Refusals};
use crate::files::read_whole;

/// SHA-256 of an image file's bytes.
pub type Hash = [u8; 32];

/// Decodes every image; those that are none are refused with their items. Hashes of the others, in the items' order.
pub fn open_pictures(dataset: &mut Dataset, refusals: &mut Refusals, progress: &(impl Fn() + Sync)) -> Vec<Hash> {
    let Some(folder) = dataset.images.clone() else { return Vec::new() };
    let open = |item: &Item| -> Result<Hash> {
        let bytes = read_whole(&folder.join(&item.image), MAX_DECODED_BYTES)?;
        decode(&bytes)?;
        Ok(Sha256::digest(&bytes).into())
    };
    // Pictures of any size may be in flight, one a thread.
    let opened: Vec<Result<Hash>> = dataset
        .items
        .par_iter()
        .map(|item| {
            let opened = open(item);
            progress();
            opened
        })
        .collect();
    let (mut items, mut hashes) = (Vec::new(), Vec::new());
    for (item, hash) in std::mem::take(&mut dataset.items).into_iter().zip(opened) {
        match hash {
            Ok(hash) => {
                items.push(item);
                hashes.push(hash);
            }
            Err(error) => refusals.list.push(Refusal {
                name: item.image.display().to_string(),
                reason: Reason::BadImage(error.root().to_string().lines().next().unwrap_or_default().to_string()),
            }),
        }
    }
    dataset.items = items;
    hashes
}

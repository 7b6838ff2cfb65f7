//! Whether a dataset's files are pictures.

use rayon::prelude::*;
use rscapret::{
    Result,
    clip::preprocess::{MAX_DECODED_BYTES, decode},
};

use super::{Dataset, Item, Reason, Refusal, Refusals};
use crate::files::read_whole;

/// Decodes every image; those that are none are refused with their items. What `of` makes of the others' files, in the items'
/// order. `progress` is called for each image.
pub fn open_pictures<T: Send>(
    dataset: &mut Dataset,
    refusals: &mut Refusals,
    of: impl Fn(&[u8]) -> T + Sync,
    progress: impl Fn() + Sync,
) -> Vec<T> {
    let Some(folder) = dataset.images.clone() else { return Vec::new() };
    let open = |item: &Item| -> Result<T> {
        let bytes = read_whole(&folder.join(&item.image), MAX_DECODED_BYTES)?;
        decode(&bytes)?;
        Ok(of(&bytes))
    };
    // Pictures of any size may be in flight, one a thread.
    let opened: Vec<Result<T>> = dataset
        .items
        .par_iter()
        .map(|item| {
            let opened = open(item);
            progress();
            opened
        })
        .collect();
    let (mut items, mut made) = (Vec::new(), Vec::new());
    for (item, opened) in std::mem::take(&mut dataset.items).into_iter().zip(opened) {
        match opened {
            Ok(of_file) => {
                items.push(item);
                made.push(of_file);
            }
            Err(error) => refusals.list.push(Refusal {
                name: item.image.display().to_string(),
                reason: Reason::BadImage(error.root().to_string().lines().next().unwrap_or_default().to_string()),
            }),
        }
    }
    dataset.items = items;
    made
}

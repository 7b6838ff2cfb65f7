//! A picture; one that is decoded must have a colour for each of its pixels.

use rscapret::{Result, clip::preprocess::decode};

pub fn read(bytes: &[u8]) -> Result<()> {
    let picture = decode(bytes)?;
    assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
    Ok(())
}

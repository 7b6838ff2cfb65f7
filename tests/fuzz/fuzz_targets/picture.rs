//! A picture that is decoded has a colour for each of its pixels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rscapret::clip::preprocess::decode;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(picture) = decode(bytes) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
    }
});

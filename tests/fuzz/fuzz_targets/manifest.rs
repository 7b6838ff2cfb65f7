//! A manifest that is read is written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rscapret::bundle::Bundle;

fuzz_target!(|bytes: &[u8]| {
    let Ok(bundle) = Bundle::parse(bytes) else { return };
    assert_eq!(Bundle::parse(&bundle.to_json().unwrap()).unwrap(), bundle);
});

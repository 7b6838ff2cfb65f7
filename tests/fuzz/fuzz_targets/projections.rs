//! Projections that open are of the sizes that were asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use rscapret::{Candle, projection::Projections};

const FEATURES: usize = 3;
const HIDDEN: usize = 2;

fuzz_target!(|bytes: &[u8]| {
    let opened = block_on(Projections::open(&Candle::cpu(), bytes, FEATURES, HIDDEN, &[]));
    if let Ok(projections) = opened {
        assert_eq!((projections.config().feature_size, projections.config().hidden_size), (FEATURES, HIDDEN));
    }
});

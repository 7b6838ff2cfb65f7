//! Projections; those that open must be of the sizes that were asked for.

use pollster::block_on;
use rscapret::{Candle, Result, projection::Projections};

pub const FEATURES: usize = 3;
pub const HIDDEN: usize = 2;

pub fn read(bytes: &[u8]) -> Result<()> {
    let projections = block_on(Projections::open(&Candle::cpu(), bytes, FEATURES, HIDDEN, &[]))?;
    assert_eq!((projections.config().feature_size, projections.config().hidden_size), (FEATURES, HIDDEN));
    Ok(())
}

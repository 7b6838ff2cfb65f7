//! Captions.

pub mod sampling;
pub mod stream;

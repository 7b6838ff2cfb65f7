//! Trainer of rscapret.

pub mod dataset;
pub mod eval;

//! Trainer of rscapret.

pub mod cli;
pub mod dataset;
pub mod eval;

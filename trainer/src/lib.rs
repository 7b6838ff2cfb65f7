//! Trainer of rscapret.

pub mod dataset;

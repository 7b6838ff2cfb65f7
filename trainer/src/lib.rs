//! Trainer of rscapret, and its command line.

pub mod cli;
pub mod dataset;
pub mod eval;
pub mod files;

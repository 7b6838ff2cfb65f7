//! Trainer of rscapret.

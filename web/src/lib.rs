//! The page of rscapret.

//! Command line of rscapret.
fn main() {}

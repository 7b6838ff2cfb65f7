//! Entry point of the user interface.
fn main() {}

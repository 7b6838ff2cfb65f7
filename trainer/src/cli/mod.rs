//! The subcommands, one file each: `Args` as the user writes them, and `run`.

pub mod score;

//! The program `rscapret`: parse, run, print the error chain once.

use std::process::ExitCode;

use clap::Parser;
use rscapret_trainer::cli::Cli;

fn main() -> ExitCode {
    rscapret_trainer::threads::settle();
    // Usage errors end here, with exit code 2.
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

//! Set-up, demo, tests and benchmarks: everything that a person or CI runs, as `cargo xtask <command>`.
//!
//! A library too, because the browser tests serve the page with the same [`serve::Server`] that the demo uses.

mod args;
mod bench;
mod demo;
mod error;
mod page;
pub mod serve;
pub mod setup;
mod shell;
mod test;

pub use bench::names as benchmarks;
pub use error::{Error, Result};

use args::Args;

const HELP: &str = "\
Everything that one does with this repository.

Usage: cargo xtask <command> [options]

Commands:
  demo    set up, build the page, serve it on this machine and print its address
  test    run every check, cheapest first; what CI runs
  setup   install what the page (and with --tests, the tests) need; does nothing the second time
  page    build the page, and with --bench the one that measures, and nothing more
  serve   serve a folder as the demo is served
  bench   measure speed and sizes, as a table and as JSON

cargo xtask <command> --help tells more.
";

type Run = fn(Args) -> Result<()>;

const COMMANDS: [(&str, &str, Run); 6] = [
    ("demo", demo::HELP, demo::run),
    ("test", test::HELP, test::run),
    ("setup", setup::HELP, setup::run),
    ("page", page::HELP, page::run_command),
    ("serve", serve::HELP, serve::run),
    ("bench", bench::HELP, bench::run),
];

/// What `cargo xtask <command> --help` prints, if there is that command.
pub fn help(command: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(name, ..)| *name == command).map(|(_, help, _)| *help)
}

/// Runs the command that `args` (without the program's name) asks for.
///
/// # Errors
/// [`Error::Usage`] for arguments that make no sense, [`Error::Failed`] for everything that went wrong while doing it.
pub fn run(args: impl IntoIterator<Item = String>) -> Result<()> {
    let mut args = Args::new(args);
    let name = match args.command().as_deref() {
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            return Ok(());
        }
        Some(name) => name.to_string(),
    };
    let Some((_, help, command)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return Err(Error::Usage(format!("expected a command but found `{name}`\n\n{HELP}")));
    };
    if args.flag("--help") || args.flag("-h") {
        print!("{help}");
        return Ok(());
    }
    command(args)
}

//! The page, on this machine.

use crate::args::Args;
use crate::error::Result;
use crate::{page, serve};

pub(crate) const HELP: &str = "\
Gets what the page needs (the first time that takes up to 15 minutes on two cores), builds it, serves it to this
machine only and prints its address. Ctrl-C ends it.

Usage: cargo xtask demo [options]

Options:
  --port N     port of 127.0.0.1; without it 8080 or the next free one
  --no-build   serve what was built before
";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let port = args.port()?;
    let built = args.flag("--no-build");
    args.finish()?;
    if !built {
        page::build()?;
    }
    page::check_built()?;
    serve::forever(&page::dist(), port, "The demo is at")
}

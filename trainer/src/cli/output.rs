//! What goes to standard output.

use std::io::{ErrorKind, Write as _};

use rscapret::{Error, Result};
use serde::Serialize;

/// Prints text and ends its last line. A reader that closes the pipe early (`| head`) has what it wanted.
pub(super) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Io(format!("expected to write to standard output but found: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON that people can read, too.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    text(&serde_json::to_string_pretty(value).map_err(|error| Error::Io(error.to_string()))?)
}

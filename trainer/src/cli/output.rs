//! What goes to standard output, and what may.

use std::io::{ErrorKind, Write as _};

use rscapret::{Error, Result};
use serde::Serialize;

/// Prints text and ends its last line. A reader that closes the pipe early (`| head`) has what it wanted.
pub(super) fn text(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.strip_suffix('\n').unwrap_or(text)).and_then(|()| out.flush()) {
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

/// A value as one line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Io(error.to_string()))
}

/// A number of things: `1 image`, `3 images`.
pub(super) fn counted(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Text of a file for a terminal: control characters, those of writing direction too, are spelled out.
pub(super) fn printable(text: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "image")), ["0 images", "1 image", "2 images"]);
    }

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(printable("a \u{1b}[31m\nb\u{202e} é 木"), "a \\u{1b}[31m\\nb\\u{202e} é 木");
    }
}

//! What can go wrong here.

use std::fmt;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error as it is printed: lower case, the remedy on a line of its own.
#[derive(Debug)]
pub enum Error {
    /// The arguments make no sense.
    Usage(String),
    /// The work failed.
    Failed(String),
}

impl Error {
    /// Exit code of the program: 2 for usage, else 1.
    pub fn code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Failed(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text) | Error::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    fn at(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn at(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::Failed(format!("{what}: expected success but found: {e}")))
    }
}

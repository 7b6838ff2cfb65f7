//! The one error type of the library.
//!
//! Wording: lower case, no full stop, names in backticks, `expected … but found …` with the values in it; where the
//! remedy is known it stands on a second line. The caller that knows a file's name adds it with [`Context::at`].

use std::fmt::Display;

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. The kinds survive to the page and to the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- files ------------------------------------------------------------------------------------------------
    /// Bytes could not be had (disk, browser storage, network).
    #[error("{0}")]
    Io(String),
    /// The bytes are not what their format demands.
    #[error("{0}")]
    Malformed(String),
    /// Well-formed, but this library does not do it.
    #[error("{0}")]
    Unsupported(String),
    /// A file's SHA-256 is not the one that is recorded.
    #[error("expected sha256 {expected} but found {found}\nthe file is damaged or from another bundle: fetch it again")]
    Hash {
        /// Recorded digest, hexadecimal.
        expected: String,
        /// Digest of the bytes at hand, hexadecimal.
        found: String,
    },

    // --- weights ----------------------------------------------------------------------------------------------
    /// A tensor that the model needs is not in the file.
    #[error("expected tensor `{0}` but found none of that name")]
    MissingTensor(String),
    /// Tensors in the file that the model does not use.
    #[error("expected no other tensors but found {}", list(.0))]
    ExtraTensors(Vec<String>),
    /// A tensor has another shape than the configuration says.
    #[error("expected `{name}` to have shape {expected:?} but found {found:?}")]
    Shape {
        /// Tensor's name.
        name: String,
        /// Shape by the configuration, outermost first.
        expected: Vec<usize>,
        /// Shape in the file, outermost first.
        found: Vec<usize>,
    },

    // --- what the user gave -----------------------------------------------------------------------------------
    /// A picture could not be read.
    #[error("{0}")]
    Image(String),
    /// A configuration, an option or an argument that cannot be used.
    #[error("{0}")]
    Config(String),

    // --- computing --------------------------------------------------------------------------------------------
    /// The backend refused an operation.
    #[error("{0}")]
    Backend(String),
    /// The caller asked to stop.
    #[error("expected to come to the end but found a request to stop")]
    Cancelled,

    // --- context ----------------------------------------------------------------------------------------------
    /// Where it happened; the cause is its source.
    #[error("{context}: {source}")]
    At {
        /// Path, tensor or stage.
        context: String,
        /// What happened there.
        source: Box<Error>,
    },
}

/// At most five names, then a count.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|n| format!("`{n}`")).collect();
    match names.len().checked_sub(5) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

impl Error {
    /// The kind below all context.
    pub fn root(&self) -> &Error {
        match self {
            Error::At { source, .. } => source.root(),
            other => other,
        }
    }

    /// Whether a device refused, for want of memory above all: another may take what this one does not.
    pub fn is_of_device(&self) -> bool {
        matches!(self.root(), Error::Backend(_))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Backend(told(&error.to_string()))
    }
}

/// What CUDA and cuBLAS say when memory does not suffice.
const FULL: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];

/// A device's message in the words of this library, where they are known.
fn told(text: &str) -> String {
    if FULL.iter().any(|full| text.contains(full)) {
        return "expected enough memory on the GPU but found less\n\
                take a quantised language model (GGUF); when training, lower `micro_batch` or set compute = \"bf16\" in \
                [training]; nvidia-smi tells what else uses the memory"
            .to_string();
    }
    // candle appends a backtrace to its text when RUST_BACKTRACE is set: the first line is the message.
    text.lines().next().unwrap_or_default().to_string()
}

/// Adds where an error happened.
pub trait Context<T> {
    /// Puts `context` (a path, a tensor's name, a stage) before the message.
    fn at(self, context: impl Display) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, context: impl Display) -> Result<T> {
        self.map_err(|e| Error::At { context: context.to_string(), source: Box::new(e.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_room_is_told_with_the_remedy() {
        // As cudarc writes them, and candle after it.
        for text in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "matmul: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: candle_core::error::Error::bt",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            let error = Error::from(candle_core::Error::Msg(text.to_string()));
            assert!(matches!(error, Error::Backend(_)));
            let error = error.to_string();
            assert!(error.starts_with("expected enough memory on the GPU but found less\n"), "{error}");
            assert!(["micro_batch", "bf16", "GGUF"].iter().all(|remedy| error.contains(remedy)), "{error}");
        }
        let other = Error::from(candle_core::Error::Msg("shape mismatch\n   0: a backtrace".to_string()));
        assert_eq!(other.to_string(), "shape mismatch");
    }
}

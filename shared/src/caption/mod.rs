//! Captions: the models of a bundle put together, the sequences that the language model reads, and the choice of tokens.

mod captioner;
mod decode;
#[cfg(feature = "webgpu")]
mod need;
mod options;
pub mod sampling;
pub mod sequence;
pub mod stream;
#[cfg(test)]
mod tests;

pub use captioner::Captioner;
pub use decode::{CaptionStream, DecodeStats};
pub(crate) use decode::{Trimmed, with_noise};
#[cfg(feature = "webgpu")]
pub use need::Need;
pub use options::DecodeOptions;

//! CLIP.
pub mod preprocess;

//! CLIP (Radford et al., 2021): the vision tower that sees, and the text tower that it was trained with.

pub mod config;
pub mod preprocess;
mod text;
mod transformer;
mod vision;

pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use text::ClipText;
pub use transformer::Encoder;
pub use vision::{ClipVision, VisionFeatures};

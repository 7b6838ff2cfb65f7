//! CLIP (Radford et al., 2021): the vision tower that sees, and the text tower that it was trained with.

mod checkpoint;
pub mod config;
mod export;
mod feature;
mod gguf;
mod open_clip;
mod open_clip_config;
pub mod preprocess;
mod text;
mod transformer;
mod vision;

pub use checkpoint::{load_vision, load_vision_checkpoint};
pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use export::vision_gguf;
pub use feature::ImageFeature;
pub use open_clip::OpenClip;
pub use open_clip_config::{OPEN_CLIP_CONFIG, open_clip_folder};
pub use text::ClipText;
pub use transformer::{Branch, Encoder};
pub use vision::{ClipVision, Dropped, VisionFeatures};

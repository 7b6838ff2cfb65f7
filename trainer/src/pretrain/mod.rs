//! Models from nothing: a small CLIP from pairs and a small Llama from text, for where published ones are too large.

pub mod clip;
pub mod lm;

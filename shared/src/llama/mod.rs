//! Llama (Touvron et al., 2023): configuration, weights and state apart.

pub mod config;
mod kv_cache;
mod model;
pub mod tokenizer;

pub use config::{LlamaConfig, RopeScaling};
pub use kv_cache::KvCache;
pub use model::Llama;

//! Llama (Touvron et al., 2023): configuration, weights and state apart.

mod checkpoint;
pub mod config;
mod export;
mod gguf;
mod kv_cache;
mod model;
pub mod tokenizer;

pub use checkpoint::{load_llama, load_llama_checkpoint, load_llama_gguf, load_llama_weights};
pub use config::{LlamaConfig, RopeScaling};
pub use export::{llama_gguf, vocab_from_json};
pub use kv_cache::KvCache;
pub use model::Llama;

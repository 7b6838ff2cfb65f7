//! Llama.
pub mod tokenizer;

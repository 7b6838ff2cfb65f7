//! GGML block formats.

//! The page: captions and finds aerial images inside the browser, with nothing uploaded.
//!
//! Two WebAssembly modules that meet in [`protocol`] only: [`app`] shows and never computes, [`worker`] computes and
//! never shows; what the browser keeps for it between two visits lies in `storage`. Builds for wasm32 alone, through Trunk.

pub mod app;
pub mod protocol;
mod storage;
pub mod worker;

//! The page: captions and finds aerial images inside the browser, with nothing uploaded.
//!
//! Two WebAssembly modules that meet in [`protocol`] only: [`app`] shows and never computes, [`worker`] computes and
//! never shows. Builds for wasm32 alone, through Trunk.

pub mod app;
pub mod protocol;
pub mod worker;

//! The models in Chromium, in the wasm that `cargo xtask bench` builds.

use std::path::PathBuf;

use rscapret::{
    Error, Result,
    bench::{self, Row, chosen},
};
use serde_json::json;

use super::{demo_folder, on_disk};
use crate::browser::{Browser, Workbench, own_gpu};

/// Last part of the rows' names, here and in the page's benchmark: on the processor, on the GPU.
pub(super) const SUFFIXES: [&str; 2] = ["/chromium", "/chromium/webgpu"];
/// Files of the demo bundle that the page asks for.
const FILES: [&str; 2] = ["llm.gguf", "vision.gguf"];

pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    for (on_gpu, suffix) in [false, true].into_iter().zip(SUFFIXES) {
        let only_gpu = bench::gpu_names().filter(|_| on_gpu);
        if bench::names().chain(only_gpu).any(|name| chosen(names, &format!("{name}{suffix}"))) {
            measure(names, on_gpu, emit)?;
        }
    }
    Ok(())
}

fn measure(names: &[String], on_gpu: bool, emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let folder = workbench_folder()?;
    for file in FILES.iter().filter(|file| demo_folder().join(file).exists()) {
        on_disk(std::fs::copy(demo_folder().join(file), folder.join(file)), file)?;
    }
    let browser = if on_gpu { Browser::start_with_gpu() } else { Browser::start() };
    let workbench = Workbench::open_in(&folder, browser);
    workbench.order(&json!({ "measure": { "names": names, "gpu": on_gpu, "short": !own_gpu() } }));
    while let Some(row) = workbench.answer().map_err(Error::Backend)? {
        let mut row: Row = serde_json::from_str(&row).map_err(|e| Error::Malformed(e.to_string()))?;
        if on_gpu {
            row.note += ": ";
            row.note += conditions(on_gpu);
        }
        emit(row)?;
    }
    Ok(())
}

/// The folder of the page that measures.
///
/// # Errors
/// [`Error::Config`] where it was not built.
pub(super) fn workbench_folder() -> Result<PathBuf> {
    let none = "expected the workbench in target/bench-page but found none\n`cargo xtask bench` builds it";
    Workbench::folder().ok_or_else(|| Error::Config(none.into()))
}

/// What computes, for notes.
pub(super) fn conditions(on_gpu: bool) -> &'static str {
    match on_gpu {
        true if own_gpu() => "this machine's GPU",
        true => "SwiftShader",
        false => "1 thread",
    }
}

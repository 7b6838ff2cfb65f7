//! The models in Chromium, in the wasm that `cargo xtask bench` builds.

use rscapret::{
    Error, Result,
    bench::{self, Row, chosen},
};
use serde_json::json;

use super::{demo_folder, on_disk};
use crate::browser::{Browser, Workbench};

/// Last part of the rows' names, here and in the page's benchmark.
const SUFFIX: &str = "/chromium";
/// Files of the demo bundle that the page asks for.
const FILES: [&str; 2] = ["llm.gguf", "vision.gguf"];

pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    if !bench::names().any(|name| chosen(names, &format!("{name}{SUFFIX}"))) {
        return Ok(());
    }
    let Some(folder) = Workbench::folder() else {
        return Err(Error::Config(
            "expected the workbench in target/bench-page but found none\n`cargo xtask bench` builds it".into(),
        ));
    };
    for file in FILES.iter().filter(|file| demo_folder().join(file).exists()) {
        on_disk(std::fs::copy(demo_folder().join(file), folder.join(file)), file)?;
    }
    let workbench = Workbench::open_in(&folder, Browser::start());
    workbench.order(&json!({ "measure": names }));
    while let Some(row) = workbench.answer().map_err(Error::Backend)? {
        emit(serde_json::from_str(&row).map_err(|e| Error::Malformed(e.to_string()))?)?;
    }
    Ok(())
}

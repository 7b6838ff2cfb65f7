//! The models in Chromium, in the wasm that `cargo xtask bench` has built into `target/bench-page`.

use rscapret::{
    Error, Result,
    bench::{self, Row, chosen},
};
use serde_json::Value;
use xtask::serve::Server;

use super::{demo_folder, on_disk};
use crate::{browser::Browser, tests_dir};

/// Last part of the rows' names, here and in the page's benchmark.
const SUFFIX: &str = "/chromium";
/// Files of the demo bundle that the page asks for.
const FILES: [&str; 2] = ["llm.gguf", "vision.gguf"];

pub(super) fn run(names: &[String], emit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    if !bench::names().any(|name| chosen(names, &format!("{name}{SUFFIX}"))) {
        return Ok(());
    }
    let folder = tests_dir().join("../target/bench-page");
    if !folder.join("bench.js").is_file() {
        return Err(Error::Config(
            "expected the benchmark's page in target/bench-page but found none\n`cargo xtask bench` builds it".into(),
        ));
    }
    for file in FILES.iter().filter(|file| demo_folder().join(file).exists()) {
        on_disk(std::fs::copy(demo_folder().join(file), folder.join(file)), file)?;
    }
    let server = Server::start(&folder, 0).map_err(|e| Error::Io(e.to_string()))?;
    let browser = Browser::start();
    browser.open(&server.url());
    let names = serde_json::to_string(names).map_err(|e| Error::Io(e.to_string()))?;
    browser.script(&format!("window.measure({names})"));
    loop {
        // The page's worker puts rows, `{error}` or `null` for the end into a list.
        let message = browser.wait_for("a row", "return window.rows.length ? [window.rows.shift()] : false");
        match &message[0] {
            Value::Null => return Ok(()),
            Value::String(row) => emit(serde_json::from_str(row).map_err(|e| Error::Malformed(e.to_string()))?)?,
            other => return Err(Error::Backend(format!("expected a row but found {other}"))),
        }
    }
}

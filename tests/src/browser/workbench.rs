//! The page that measures and compares in the browser, which `cargo xtask bench` and `cargo xtask test` build.

use std::path::{Path, PathBuf};

use serde_json::Value;
use xtask::serve::Server;

use super::Browser;
use crate::tests_dir;

/// The workbench in a browser.
pub struct Workbench {
    browser: Browser,
    _server: Server,
}

impl Workbench {
    /// Where it was built; `None` if it was not.
    pub fn folder() -> Option<PathBuf> {
        let folder = tests_dir().join("../target/bench-page");
        folder.join("bench.js").is_file().then_some(folder)
    }

    /// Opens it in a browser.
    ///
    /// # Panics
    /// Without a port to serve it at.
    pub fn open_in(folder: &Path, browser: Browser) -> Workbench {
        let server = Server::start(folder, 0).expect("expected the server to start");
        browser.open(&server.url());
        Workbench { browser, _server: server }
    }

    /// Tells it what to do: see `web/src/bin/bench.rs`.
    pub fn order(&self, order: &Value) {
        self.browser.script(&format!("window.order({order})"));
    }

    /// Its next answer; `None` at the end.
    ///
    /// # Errors
    /// What it says went wrong.
    pub fn answer(&self) -> Result<Option<String>, String> {
        let answer = self.browser.wait_for("an answer", "return window.answers.length && [window.answers.shift()]");
        match &answer[0] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            other => Err(other["error"].as_str().map_or_else(|| other.to_string(), str::to_string)),
        }
    }

    /// The browser.
    pub fn browser(&self) -> &Browser {
        &self.browser
    }
}

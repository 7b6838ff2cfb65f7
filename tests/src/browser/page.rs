//! The page in the words of its `data-testid`s, the contract between it and the tests.

use std::{ops::Deref, path::PathBuf};

use serde_json::{Value, json};
use xtask::serve::Server;

use super::{Browser, Requests};
use crate::tests_dir;

/// Enter, as WebDriver types it.
const ENTER: &str = "\u{e007}";

/// The built page.
///
/// # Panics
/// When it was not built.
pub fn dist() -> PathBuf {
    let dist = tests_dir().join("../dist");
    let built = dist.join("index.html").is_file();
    assert!(built, "expected the built page in dist/ but found none\n`cargo xtask test` builds it and runs this test");
    dist
}

/// The page in a browser, served as `cargo xtask demo` serves it.
pub struct Page {
    browser: Browser,
    server: Server,
}

impl Deref for Page {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        &self.browser
    }
}

impl Page {
    /// Opens the page as it was built.
    pub fn open() -> Page {
        Page::open_at(&dist())
    }

    /// Opens the page in a folder.
    pub fn open_at(folder: &std::path::Path) -> Page {
        Page::open_in(folder, Browser::start())
    }

    /// Opens the page in a folder, in a browser that was started for it.
    ///
    /// # Panics
    /// Without a port to serve it at.
    pub fn open_in(folder: &std::path::Path, browser: Browser) -> Page {
        let page = Page::serve_in(folder, browser);
        page.browser.open(&page.url());
        page
    }

    /// Serves the page in a folder to a browser, and does not open it yet.
    ///
    /// # Panics
    /// As [`Page::open_in`].
    pub fn serve_in(folder: &std::path::Path, browser: Browser) -> Page {
        let server = Server::start(folder, 0).expect("expected the server to start");
        Page { browser, server }
    }

    /// Opens the page and waits for the model.
    pub fn ready() -> Page {
        let page = Page::open();
        page.wait_ready();
        page
    }

    /// Opens the page in a browser with a GPU and waits for the model.
    pub fn ready_on_gpu() -> Page {
        Page::ready_on_gpu_at(&dist())
    }

    /// Opens the page in a folder, in a browser with a GPU, and waits for the model.
    pub fn ready_on_gpu_at(folder: &std::path::Path) -> Page {
        let page = Page::open_on_gpu(folder, Browser::start_with_gpu());
        page.wait_ready();
        page
    }

    /// Opens the page in a folder, in a browser whose GPU is a program: the page's address allows it.
    ///
    /// # Panics
    /// As [`Page::open_in`].
    pub fn open_on_gpu(folder: &std::path::Path, browser: Browser) -> Page {
        let page = Page::serve_in(folder, browser);
        page.browser.open(&format!("{}?device=webgpu", page.url()));
        page
    }

    /// Leaves the page and comes again, after a request for `marker` that the test makes itself; waits for the model.
    pub fn visit_again(&self, marker: &str) {
        let marker = Value::from(marker);
        self.script(&format!("return fetch(location.href + {marker}).then(answer => answer.status)"));
        self.browser.open(&self.url());
        self.wait_ready();
    }

    /// Waits until the model answers.
    pub fn wait_ready(&self) {
        self.wait_for("the model to be ready", "return !!document.querySelector('[data-testid=model]')");
    }

    /// Waits until nothing is being done and all pictures can be found.
    pub fn wait_idle(&self) {
        let idle = "return document.querySelector('[data-testid=status]').dataset.mood === 'idle'";
        self.wait_for("the page to be idle", idle);
    }

    /// Address of the server.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Text of the first element with this `data-testid`; empty without one.
    pub fn text(&self, id: &str) -> String {
        let body = format!("return document.querySelector('[data-testid={id}]')?.textContent ?? ''");
        self.script(&body).as_str().unwrap_or_default().to_string()
    }

    /// Texts of all elements with this `data-testid`.
    pub fn texts(&self, id: &str) -> Vec<String> {
        let body = format!("return [...document.querySelectorAll('[data-testid={id}]')].map(e => e.textContent)");
        serde_json::from_value(self.script(&body)).expect("expected texts")
    }

    /// Whether there is an element with this `data-testid`.
    pub fn has(&self, id: &str) -> bool {
        self.script(&format!("return !!document.querySelector('[data-testid={id}]')")) == json!(true)
    }

    /// Ids of the shown pictures, in their order.
    pub fn images(&self) -> Vec<u32> {
        let body = "return [...document.querySelectorAll('[data-testid=tile]')].map(e => +e.dataset.image)";
        serde_json::from_value(self.script(body)).expect("expected ids")
    }

    /// Scores of the shown pictures, in their order.
    pub fn scores(&self) -> Vec<f32> {
        self.texts("score").iter().map(|score| score.parse().expect("expected a number")).collect()
    }

    /// Opens the large view of a picture and gives its whole caption.
    pub fn caption_of(&self, image: u32) -> String {
        self.click(&format!("[data-image='{image}'] [data-testid=open]"));
        let caption = self.finished_caption();
        self.click("[data-testid=close]");
        self.wait_for("the large view to close", "return !document.querySelector('[data-testid=caption]')");
        caption
    }

    /// Waits for the caption of the large view to end and gives it.
    pub fn finished_caption(&self) -> String {
        let state = self.wait_for(
            "the caption to end",
            "const s = document.querySelector('dialog[open] [data-testid=caption]')?.dataset.state;
             return ['done', 'stopped', 'failed'].includes(s) && s",
        );
        let caption = self.text("caption");
        assert_eq!(state, json!("done"), "{caption}");
        caption
    }

    /// Types a sentence and Enter, and waits for the ranking by it.
    pub fn search(&self, sentence: &str) {
        self.script("document.querySelector('[data-testid=search-input]').select()");
        self.type_into("[data-testid=search-input]", &format!("{sentence}{ENTER}"));
        self.wait_ranked(&format!("Ranked by “{sentence}”"));
    }

    /// Waits for a ranking with this heading.
    pub fn wait_ranked(&self, heading: &str) {
        let heading = Value::from(heading);
        let body = format!("return document.querySelector('[data-testid=album-heading]').textContent === {heading}");
        self.wait_for("the ranking", &body);
    }

    /// Gives files to the page.
    pub fn upload(&self, files: &[PathBuf]) {
        let lines: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        self.type_into("[data-testid=upload]", &lines.join("\n"));
    }

    /// Ends the browser and gives all its requests.
    pub fn into_requests(self) -> Requests {
        self.browser.requests()
    }
}

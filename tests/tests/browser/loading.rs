//! What is seen until the model answers, or instead of it.

use std::fs;

use rscapret_tests::browser::{Browser, Page, dist};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{album, assert_quiet_console, storage::few_pictures, tampered, wait_notice};

/// Before anything of the page runs: what it shows while it loads, from change to change. Line, status, bar, and what becomes of
/// the model.
pub const WATCH: &str = "window.seen = [];
    new MutationObserver(() => {
      const panel = document.querySelector('[data-testid=loading]');
      if (!panel) return;
      const [line, bar] = [panel.querySelector('p'), panel.querySelector('progress')];
      const doing = document.querySelector('[data-testid=doing]')?.textContent ?? '';
      const keeping = document.querySelector('[data-testid=keeping]').textContent;
      seen.push([line.textContent, doing, bar.value / bar.max, keeping]);
    }).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});";

/// Is each of `parts` in `all`, in this order, others between them or not?
fn in_order(parts: &[String], all: &[String]) -> bool {
    let mut all = all.iter();
    parts.iter().all(|part| all.any(|one| one == part))
}

#[test]
fn stages_and_bytes_are_told() {
    let browser = Browser::start();
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WATCH }));
    let page = Page::open_in(&dist(), browser);
    page.wait_ready();
    assert!(!page.has("loading"), "nothing is left of it");
    let seen: Vec<(String, String, f64, String)> = serde_json::from_value(page.script("return seen")).unwrap();

    // What must have been seen, by the manifest: megabytes that are here when each file begins, of all.
    let bundle: Value = serde_json::from_slice(&fs::read(dist().join("models/demo/bundle.json")).unwrap()).unwrap();
    let files = ["llm", "vision", "projections"].map(|part| &bundle["files"][part]);
    let bytes = files.map(|file| file["bytes"].as_u64().unwrap() as f64);
    let total: f64 = bytes.iter().sum();
    let (mut lines, mut parts, mut here) = (vec!["Loading the album".to_string()], Vec::new(), 0.0);
    for (file, bytes) in files.iter().zip(bytes) {
        let path = file["path"].as_str().unwrap();
        lines.push(format!("Loading {path}: {:.1} of {:.1} MB", here / 1e6, total / 1e6));
        lines.push(format!("Verifying {path} (SHA-256)"));
        here += bytes;
        parts.push(here / total);
    }
    lines.push("Building the model".into());
    let shown: Vec<String> = seen.iter().map(|s| s.0.clone()).collect();
    assert!(in_order(&lines, &shown), "{lines:#?} in {seen:#?}");
    let status: Vec<String> = seen.iter().map(|s| s.1.clone()).collect();
    assert!(in_order(&lines, &status), "{lines:#?} in {seen:#?}");

    // The bar only grows, stands at each file's end, and is full at last.
    let bar: Vec<f64> = seen.iter().map(|s| s.2).collect();
    assert!(bar.is_sorted(), "{bar:?}");
    for part in parts {
        assert!(bar.iter().any(|at| (at - part).abs() < 1e-6), "{part} in {bar:?}");
    }
    assert_quiet_console(&page);
}

fn failure_of(folder: &TempDir) -> String {
    let page = Page::open_at(folder.path());
    page.wait_for("the failure to be told", "return !!document.querySelector('[data-testid=failure]')");
    assert_eq!(page.text("doing"), "Stopped");
    assert!(!page.has("loading"), "no progress is shown where there is none");
    page.text("failure")
}

#[test]
fn a_damaged_bundle_is_refused_with_its_reason() {
    let folder = tampered(|bundle| {
        let mut bytes = fs::read(bundle.join("llm.gguf")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(bundle.join("llm.gguf"), bytes).unwrap();
    });
    let failure = failure_of(&folder);
    assert!(failure.contains("llm.gguf: expected sha256 ") && failure.contains("fetch it again"), "{failure}");
}

#[test]
fn a_missing_file_is_named_with_its_status() {
    let folder = tampered(|bundle| fs::remove_file(bundle.join("vision.gguf")).unwrap());
    let failure = failure_of(&folder);
    assert!(failure.contains("models/demo/vision.gguf: expected status 200 but found 404"), "{failure}");
}

#[test]
fn a_picture_that_is_none_is_skipped_though_it_is_clicked_before_its_turn() {
    let name = album().swap_remove(5);
    let folder = tampered(|bundle| {
        few_pictures(bundle);
        fs::write(bundle.join("album").join(&name), "this is no picture").unwrap();
    });
    let page = Page::open_at(folder.path());
    // Pictures come before the model.
    page.wait_for("the album", "return !!document.querySelector('[data-image=\"5\"]')");
    page.click("[data-image='5'] [data-testid=open]");
    let cause = "expected a JPEG, PNG, WebP or TIFF picture";
    let refused = "return document.querySelector('dialog[open] [data-testid=caption]')?.dataset.state === 'failed'";
    page.wait_for("the refusal", refused);
    assert!(page.text("caption").starts_with(&format!("No description: {cause}")), "{}", page.text("caption"));
    page.click("[data-testid=describe]");
    page.wait_for("the refusal, again", refused);
    assert!(page.text("caption").starts_with(&format!("No description: {cause}")), "{}", page.text("caption"));
    page.click("[data-testid=close]");
    page.wait_for("the large view to close", "return !document.querySelector('[data-testid=caption]')");

    // The others are indexed, and it is told once.
    page.wait_idle();
    assert!(page.text("indexed").starts_with("5 of 6 indexed"), "{}", page.text("indexed"));
    let notices = page.texts("notice");
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].starts_with(&format!("{name}: {cause}")), "{notices:?}");
    page.search("a beach");
    assert_eq!((page.images().len(), page.scores().len()), (6, 5));
    page.click("[data-image='5'] [data-testid=similar]");
    wait_notice(&page, &format!("Search: {cause}"));
}

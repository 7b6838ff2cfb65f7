//! What the browser keeps of the model between two visits.

use std::{fs, path::Path};

use rscapret_tests::browser::{Browser, Page};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{assert_quiet_console, loading::WATCH, tampered};

/// The model's files, in the order in which they are loaded.
const FILES: [&str; 3] = ["llm", "vision", "projections"];

/// Their entries in the manifest.
fn entries(folder: &Path) -> [Value; 3] {
    let bundle: Value = serde_json::from_slice(&fs::read(folder.join("models/demo/bundle.json")).unwrap()).unwrap();
    FILES.map(|file| bundle["files"][file].clone())
}

/// Digests of the entries, sorted.
fn digests(entries: &[Value]) -> Vec<String> {
    let mut digests: Vec<String> = entries.iter().map(|e| e["sha256"].as_str().unwrap().to_string()).collect();
    digests.sort();
    digests
}

/// Names and true digests of all that the browser stores for the page, sorted: none was ever written wrongly where they agree.
fn stored(page: &Page) -> Vec<(String, String)> {
    let body = "return (async () => {
        const found = [];
        for await (const folder of (await navigator.storage.getDirectory()).values()) {
          for await (const handle of folder.values()) {
            const bytes = await (await handle.getFile()).arrayBuffer();
            const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
            found.push([handle.name, [...digest].map(b => b.toString(16).padStart(2, '0')).join('')]);
          }
        }
        return found.sort();
      })()";
    serde_json::from_value(page.script(body)).unwrap()
}

fn assert_stored(page: &Page, entries: &[Value]) {
    let expected: Vec<_> = digests(entries).into_iter().map(|digest| (digest.clone(), digest)).collect();
    assert_eq!(stored(page), expected);
    assert_eq!(page.text("kept"), "stored in this browser");
}

/// Changes the page's copy of what the browser runs in the worker, by what comes before it.
fn before_the_worker(folder: &Path, script: &str) {
    let path = folder.join("worker_loader.js");
    let worker = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{script}\n{worker}")).unwrap();
}

/// A copy of the page with few pictures, in whose worker `script` runs first.
pub fn with_script(script: &str) -> TempDir {
    let folder = tampered(few_pictures);
    before_the_worker(folder.path(), script);
    folder
}

/// Shortens the album to six pictures.
pub fn few_pictures(bundle: &Path) {
    let list = bundle.join("album/album.json");
    let entries: Vec<Value> = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
    fs::write(list, json!(entries[..6]).to_string()).unwrap();
}

/// Which of the model's files were asked for in the `visits`, each of which begins with a marker.
fn asked(page: Page, markers: &[&str]) -> Vec<Vec<&'static str>> {
    let origin = page.url();
    let requests = page.into_requests().of(&origin);
    let visits = markers.iter().map(|marker| {
        let after = requests.after(marker).unwrap_or_else(|| panic!("expected {marker} in {requests:#?}"));
        let visit = after.iter().take_while(|request| !markers.iter().any(|other| request.url.ends_with(other)));
        let urls: Vec<&str> = visit.map(|request| request.url.as_str()).collect();
        // Only what must be asked for at each visit.
        for always in ["/", "models/demo/bundle.json", "models/demo/album/album.json"] {
            let url = format!("{}{always}", if always == "/" { origin.trim_end_matches('/') } else { &origin });
            assert_eq!(urls.iter().filter(|found| **found == url).count(), 1, "{url} in {urls:#?}");
        }
        let asked = |file: &&&str| urls.iter().any(|url| url.contains(&format!("/models/demo/{file}.")));
        FILES.iter().filter(asked).copied().collect()
    });
    visits.collect()
}

#[test]
fn a_second_visit_asks_for_no_weights() {
    let browser = Browser::start();
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WATCH }));
    let folder = tampered(few_pictures);
    let page = Page::open_in(folder.path(), browser);
    page.wait_ready();
    page.wait_idle();
    let entries = entries(folder.path());
    assert_stored(&page, &entries);
    let seen = page.script("return seen.map(s => s[0])").to_string();
    assert!(seen.contains("Loading llm.gguf: ") && !seen.contains("storage"), "{seen}");
    let keeping = page.script("return seen.map(s => s[3]).at(-1)").to_string();
    assert!(keeping.contains("kept in this browser's storage, which offers "), "{keeping}");
    let caption = page.caption_of(0);
    page.search("a beach");
    let found = (page.images(), page.scores());

    page.visit_again("?second");
    page.wait_idle();
    assert_stored(&page, &entries);
    let seen: Vec<String> = serde_json::from_value(page.script("return seen.map(s => s[0])")).unwrap();
    for file in &entries {
        let path = file["path"].as_str().unwrap();
        let starts = |with: &str| seen.iter().any(|line| line.starts_with(with));
        assert!(starts(&format!("Reading {path} from this browser's storage: ")), "{path} in {seen:#?}");
        assert!(starts(&format!("Verifying {path} (SHA-256)")), "{path} in {seen:#?}");
        assert!(!starts(&format!("Loading {path}")), "{path} in {seen:#?}");
    }
    assert_eq!(page.caption_of(0), caption);
    page.search("a beach");
    assert_eq!((page.images(), page.scores()), found);
    assert_quiet_console(&page);
    assert_eq!(asked(page, &["?second"]), [[""; 0]]);
}

#[test]
fn what_is_damaged_in_storage_is_fetched_again_and_what_is_old_is_removed() {
    let folder = tampered(few_pictures);
    let page = Page::open_at(folder.path());
    page.wait_ready();
    let entries = entries(folder.path());
    assert_stored(&page, &entries);
    let caption = page.caption_of(0);

    // A bit of the language model, the second half of the tower, and a file that no manifest names.
    let [llm, vision, _] = &entries;
    page.script(&format!(
        "return (async () => {{
           for await (const folder of (await navigator.storage.getDirectory()).values()) {{
             const change = async (name, size, how) => {{
               const handle = await folder.getFileHandle(name, {{create: true}});
               const out = await handle.createWritable({{keepExistingData: true}});
               await how(out, await handle.getFile());
               await out.close();
             }};
             await change({0}, 0, async (out, file) => {{
               const at = file.size >> 1;
               const [byte] = new Uint8Array(await file.slice(at, at + 1).arrayBuffer());
               await out.write({{type: 'write', position: at, data: new Uint8Array([byte ^ 1])}});
             }});
             await change({1}, 0, (out, file) => out.truncate(file.size >> 1));
             await change('{2}', 0, out => out.write('of a version before'));
           }}
         }})()",
        llm["sha256"],
        vision["sha256"],
        "0".repeat(64)
    ));
    let changed: Vec<String> = stored(&page).into_iter().filter(|(name, digest)| name != digest).map(|f| f.0).collect();
    assert_eq!(changed.len(), 3, "{changed:?}");

    page.visit_again("?damaged");
    assert_stored(&page, &entries);
    assert_eq!(page.caption_of(0), caption);
    page.visit_again("?whole");
    assert_stored(&page, &entries);
    assert_quiet_console(&page);
    assert_eq!(asked(page, &["?damaged", "?whole"]), [vec!["llm", "vision"], vec![]]);
}

/// A browser that does not store the model.
struct Refusal {
    /// What runs before the worker.
    script: &'static str,
    /// Bytes that it stores.
    quota: Option<u64>,
    /// Why not, as the page says.
    because: &'static str,
    /// What it stores nevertheless.
    stored: &'static [&'static str],
}

const REFUSALS: [Refusal; 5] = [
    Refusal {
        script: "StorageManager.prototype.getDirectory = () => Promise.reject(new DOMException('no', 'SecurityError'));",
        quota: None,
        because: "it refuses storage to this window",
        stored: &[],
    },
    Refusal {
        script: "delete StorageManager.prototype.getDirectory;",
        quota: None,
        because: "it has no storage for a page like this",
        stored: &[],
    },
    Refusal {
        script: "StorageManager.prototype.estimate = () => Promise.resolve({quota: 3e6, usage: 0});",
        quota: None,
        because: "its storage offers 3.0 MB for 13.5 MB",
        stored: &[],
    },
    // Full amid the first file, and amid the second, by Chromium's own error: what it estimates is more than it takes.
    Refusal { script: "", quota: Some(3_000_000), because: "its storage is full", stored: &[] },
    Refusal { script: "", quota: Some(10_000_000), because: "its storage is full", stored: &["llm"] },
];

#[test]
fn without_storage_the_model_is_held_in_memory_and_the_page_says_so() {
    for Refusal { script, quota, because, stored: some } in REFUSALS {
        let folder = with_script(script);
        let browser = Browser::start();
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WATCH }));
        let page = Page::serve_in(folder.path(), browser);
        if let Some(bytes) = quota {
            let origin = page.url();
            let limit = json!({"origin": origin.trim_end_matches('/'), "quotaSize": bytes});
            page.devtools("Storage.overrideQuotaForOrigin", &limit);
        }
        page.open(&page.url());
        page.wait_ready();
        let what = if some.is_empty() { "not stored" } else { "not all of it is stored" };
        assert_eq!(page.text("kept"), format!("{what} in this browser: {because}"));
        assert_eq!(page.has("discard"), !some.is_empty(), "{because}: what is there can be removed");
        let keeping = page.script("return seen.map(s => s[3]).at(-1)").to_string();
        assert!(keeping.contains("This browser does not keep ") && keeping.contains(because), "{keeping}");
        assert!(page.caption_of(0).split_whitespace().count() >= 3);
        let (there, lacking): (Vec<_>, Vec<_>) = FILES.into_iter().partition(|file| some.contains(file));
        let entries = entries(folder.path());
        let whole: Vec<Value> = entries.into_iter().take(there.len()).collect();
        let whole: Vec<_> = digests(&whole).into_iter().map(|digest| (digest.clone(), digest)).collect();
        assert_eq!(stored(&page), whole, "{because}: no part of a file stays");
        page.visit_again("?again");
        assert_quiet_console(&page);
        assert_eq!(asked(page, &["?again"]), [lacking], "{because}");
    }
}

#[test]
fn the_stored_model_can_be_removed() {
    let folder = tampered(few_pictures);
    let page = Page::open_at(folder.path());
    page.wait_ready();
    let entries = entries(folder.path());
    assert_stored(&page, &entries);
    page.click("[data-testid=discard]");
    page.wait_for("the removal", "return !document.querySelector('[data-testid=discard]')");
    assert_eq!(page.text("kept"), "not stored in this browser: it was removed");
    assert_eq!(
        page.script(
            "return navigator.storage.getDirectory().then(async root => {
        const names = [];
        for await (const name of root.keys()) names.push(name);
        return names;
      })"
        ),
        json!([])
    );
    // It goes on without.
    assert!(!page.caption_of(0).is_empty());
    page.wait_idle();

    page.visit_again("?again");
    assert_stored(&page, &entries);
    assert_quiet_console(&page);
    assert_eq!(asked(page, &["?again"]), [FILES]);
}

//! The page in headless Chromium: what a person does with it, and what it must never do.

mod gpu;
mod loading;
mod own;
mod storage;

use std::{collections::BTreeMap, fs, path::Path};

use rscapret_tests::{
    browser::{Page, dist},
    command::rscapret,
    told,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Files of the album as it was built.
fn album() -> Vec<String> {
    let list = fs::read(dist().join("models/demo/album/album.json")).unwrap();
    let list: Vec<Value> = serde_json::from_slice(&list).unwrap();
    list.iter().map(|entry| entry["file"].as_str().unwrap().to_string()).collect()
}

fn assert_quiet_console(page: &Page) {
    let mut lines = page.console();
    // Chromium's own remark where the page asks for a GPU and there is none.
    lines.retain(|line| !line.contains("No available adapters."));
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn a_person_describes_and_finds() {
    let page = Page::ready();
    let album = album().len();
    page.wait_idle();
    assert_eq!(page.images().len(), album);
    assert_eq!(page.text("album-heading"), format!("Album · {album} images"));
    assert!(page.script("return document.body.innerText").to_string().contains("nothing is uploaded"));

    // The status line says what is so.
    let bundle: Value = serde_json::from_slice(&fs::read(dist().join("models/demo/bundle.json")).unwrap()).unwrap();
    let files = bundle["files"].as_object().unwrap();
    let bytes: u64 = files.values().map(|file| file["bytes"].as_u64().unwrap()).sum();
    let name = bundle["name"].as_str().unwrap();
    assert_eq!(page.text("model"), format!("{name}, {:.1} MB", bytes as f64 / 1e6));
    assert_eq!(page.text("runs-on"), "CPU SIMD, 1 thread (no GPU here)");
    assert_eq!(page.text("doing"), "Idle");
    let indexed = page.text("indexed");
    assert!(indexed.starts_with(&format!("{album} of {album} indexed, ")) && indexed.ends_with(" ms per image"));
    assert!(!page.has("speed"), "no caption was written yet");

    // A caption streams in: every text seen continues the one before.
    let first = page.images()[0];
    page.script(
        "window.seen = [];
         new MutationObserver(() => {
           const caption = document.querySelector('[data-testid=caption]');
           if (['writing', 'done'].includes(caption?.dataset.state)) seen.push(caption.textContent);
         }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});",
    );
    let caption = page.caption_of(first);
    assert!(caption.split_whitespace().count() >= 3, "{caption}");
    let mut seen: Vec<String> = serde_json::from_value(page.script("return seen")).unwrap();
    seen.dedup();
    assert!(seen.len() >= 3, "{seen:?}");
    for pair in seen.windows(2) {
        assert!(pair[1].trim().starts_with(pair[0].trim()), "{seen:?}");
    }
    assert_eq!(seen.last().map(|s| s.trim()), Some(caption.as_str()));
    assert!(page.text("speed").ends_with(" tokens/s"));
    assert_eq!(page.text("tile-caption"), caption);

    // A sentence ranks all pictures.
    page.search("many airplanes parked at an airport");
    let (images, scores) = (page.images(), page.scores());
    assert_eq!((images.len(), scores.len()), (album, album));
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(scores.iter().all(|s| (-1.0..=1.0).contains(s)) && scores[0] > scores[album - 1], "{scores:?}");
    page.search("a beach");
    assert_ne!(page.images(), images, "another sentence ranks otherwise");

    // A picture ranks them too, itself first.
    page.click(&format!("[data-image='{first}'] [data-testid=similar]"));
    page.wait_for("the ranking", "return document.querySelector('[data-image]').dataset.image === '0'");
    let (images, scores) = (page.images(), page.scores());
    assert_eq!(images[0], first);
    assert!(scores[0] > 0.999 && scores[1] < scores[0], "{scores:?}");

    page.click("[data-testid=show-all]");
    page.wait_for("the whole album", "return !document.querySelector('[data-testid=score]')");
    assert_eq!(page.images().len(), album);
    assert_quiet_console(&page);
}

#[test]
fn nothing_is_requested_once_the_model_is_there() {
    let page = Page::ready();
    page.script("return fetch(location.href + '?ready').then(answer => answer.status)");
    page.wait_idle();
    page.caption_of(page.images()[0]);
    page.search("a dense residential area");
    page.click("[data-testid=similar]");
    page.wait_for("the ranking", "return document.querySelector('h2').textContent.includes('similarity')");
    page.click("[data-testid=show-all]");
    let folder = TempDir::new().unwrap();
    page.upload(&own::files(folder.path(), &dist().join("models/demo/album").join(&album()[1])));
    page.wait_for("own pictures", "return document.querySelectorAll('.own').length === 5");
    page.wait_idle();
    let origin = page.url();

    let requests = page.into_requests().of(&origin);
    // The log sees the worker: what it fetched before is there, and names the page as the one who asked.
    for file in ["bundle.json", "llm.gguf", "vision.gguf", "projections.safetensors", "album/album.json"] {
        let url = format!("{origin}models/demo/{file}");
        let asked = requests.0.iter().find(|r| r.url == url);
        let initiator = asked.map(|r| r.initiator.as_str());
        assert_eq!(initiator, Some(origin.trim_end_matches('/')), "{file} in {requests:#?}");
    }
    let after = requests.after("?ready").expect("expected the test's own request in the log");
    assert!(after.is_empty(), "{after:#?}");
    let elsewhere: Vec<_> = requests.0.iter().filter(|r| !r.url.starts_with(&origin)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
}

/// Clicks on "stop" as soon as a caption begins, picture after picture until one is stopped: what stood there at the click, and
/// what at the end.
fn stopped_caption(page: &Page) -> (String, String) {
    page.wait_idle();
    page.script(
        "new MutationObserver(() => {
           const caption = document.querySelector('[data-testid=caption]');
           if (caption?.dataset.state !== 'writing' || !caption.textContent.trim() || !window.stops) return;
           window.stops = false;
           window.stood = caption.textContent;
           document.querySelector('[data-testid=stop]').click();
         }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});",
    );
    // A caption takes some tens of milliseconds: on a busy machine the click may come too late for one, not for all.
    let stopped = page.images().into_iter().any(|image| {
        page.script("window.stops = true");
        page.click(&format!("[data-image='{image}'] [data-testid=open]"));
        let ended = "const s = document.querySelector('dialog[open] [data-testid=caption]')?.dataset.state;
                     return ['done', 'stopped'].includes(s) && s";
        let state = page.wait_for("the caption to end", ended);
        // Stopped after the full stop, nothing is left to go on with.
        let stopped = state == json!("stopped") && !page.text("caption").trim_end().ends_with('.');
        if !stopped {
            page.click("[data-testid=close]");
            page.wait_for("the large view to close", "return !document.querySelector('[data-testid=caption]')");
        }
        stopped
    });
    assert!(stopped, "no caption was stopped");
    (page.script("return window.stood").as_str().unwrap().to_string(), page.text("caption"))
}

#[test]
fn a_caption_stops_between_two_tokens() {
    let page = Page::ready();
    let (_, part) = stopped_caption(&page);
    page.click("[data-testid=describe]");
    page.wait_for(
        "a caption that goes on",
        "return !document.querySelector('[data-testid=caption][data-state=stopped]')",
    );
    let whole = page.finished_caption();
    assert!(!part.is_empty() && whole.len() > part.len() && whole.starts_with(&part), "{part:?} {whole:?}");
    assert_quiet_console(&page);
}

#[test]
fn the_keyboard_is_enough() {
    let page = Page::ready();
    let focus = "return document.activeElement.dataset.testid ?? document.activeElement.id";
    page.script("document.querySelector('[data-testid=open]').focus()");
    page.press("\u{e007}");
    page.wait_for("the large view", "return document.querySelector('[data-testid=detail]').open");
    assert_eq!(page.script("return document.activeElement.closest('dialog')?.dataset.testid"), json!("detail"));
    page.finished_caption();
    page.press("\u{e00c}");
    page.wait_for("the large view to close", "return !document.querySelector('[data-testid=detail]').open");
    assert_eq!(page.script(focus), json!("open"), "the focus returns");

    // From the top, by Tab: the way into the album, then the field, then its button.
    page.script("document.activeElement.blur(); window.scrollTo(0, 0)");
    page.script("document.querySelector('.skip').focus()");
    for expected in ["search-input", "search-button"] {
        page.press("\u{e004}");
        assert_eq!(page.script(focus), json!(expected));
    }
    // Every picture has words, every control a name.
    let nameless = "return [...document.querySelectorAll('button, input, img, meter, progress, dialog')]
        .filter(e => !(e.ariaLabel || e.alt || e.textContent.trim() || e.labels?.length || e.querySelector('img[alt]'))).map(e => e.outerHTML)";
    assert_eq!(page.script(nameless), json!([]));
}

#[test]
fn it_fits_a_narrow_screen_in_light_and_dark() {
    let page = Page::ready();
    let metrics = json!({"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": true});
    page.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    page.caption_of(page.images()[0]);
    page.search("boats in a harbor");
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        page.devtools("Emulation.setEmulatedMedia", &features);
        let width = page.script("return document.scrollingElement.scrollWidth");
        assert_eq!(width, json!(360), "nothing sticks out");
        let contrasts = page.script(CONTRASTS);
        for (what, contrast) in contrasts.as_object().expect("expected contrasts") {
            assert!(contrast.as_f64().is_some_and(|c| c >= 4.5), "{scheme}: {what} has contrast {contrast}");
        }
    }
    page.click("[data-testid=open]");
    page.finished_caption();
    let fits =
        "const r = document.querySelector('dialog').getBoundingClientRect(); return r.left >= 0 && r.right <= 360";
    assert_eq!(page.script(fits), json!(true));
}

/// What `rscapret` prints with `--json`.
fn program(arguments: &[&str]) -> Vec<Value> {
    let output = rscapret().args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn file_name(entry: &Value) -> String {
    let path = Path::new(entry["image"].as_str().unwrap());
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn the_page_and_the_command_line_agree() {
    agree_with_the_command_line(&Page::ready(), 5, &["there are many airplanes at the airport".to_string()]);
}

/// Captions of `pictures` of the album, spread over its kinds, and rankings of all of it by sentences.
fn agree_with_the_command_line(page: &Page, pictures: usize, sentences: &[String]) {
    let bundle = dist().join("models/demo");
    let bundle_path = bundle.display().to_string();
    let names = album();
    page.wait_idle();

    let apart = names.len().div_ceil(pictures);
    let some: Vec<(usize, String)> = names.iter().cloned().enumerate().step_by(apart).collect();
    let paths: Vec<String> = some.iter().map(|(_, n)| bundle.join("album").join(n).display().to_string()).collect();
    let mut arguments = vec!["caption", "--bundle", bundle_path.as_str()];
    arguments.extend(paths.iter().map(String::as_str));
    let captions = program(&arguments);
    assert_eq!(captions.len(), some.len());
    for ((image, name), printed) in some.iter().zip(&captions) {
        assert_eq!(&file_name(printed), name);
        assert_eq!(printed["caption"], json!(page.caption_of(u32::try_from(*image).unwrap())), "{name}");
    }

    let folder = TempDir::new().unwrap();
    let index = folder.path().join("album.index").display().to_string();
    let pictures = bundle.join("album").display().to_string();
    let made = rscapret().args(["index", "--bundle", &bundle_path, &pictures, "-o", &index]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let top = names.len().to_string();
    for sentence in sentences {
        page.search(sentence);
        let found = program(&["search", "--bundle", &bundle_path, "--top", &top, &index, sentence]);
        let score: BTreeMap<String, f64> = found.iter().map(|f| (file_name(f), f["score"].as_f64().unwrap())).collect();
        let shown: Vec<&String> = page.images().iter().map(|&i| &names[i as usize]).collect();
        assert_eq!(shown.len(), score.len());
        let off = shown.iter().zip(page.scores()).map(|(&name, shown)| (f64::from(shown) - score[name]).abs());
        let off = off.fold(0.0, f64::max);
        assert!(off < SAME_SCORE, "{sentence}: scores are {off} apart");
        // The order is the same but for near ties, which are named.
        for pair in shown.windows(2) {
            let behind = score[pair[1]] - score[pair[0]];
            assert!(behind < 2.0 * SAME_SCORE, "{sentence}: {} stands before {}, better by {behind}", pair[0], pair[1]);
            if behind > 0.0 {
                told(&format!("{sentence}: near tie: {} and {}, {behind:.5} apart", pair[0], pair[1]));
            }
        }
    }
}

/// How far a score may be off on another processor, whose sums have another order. Three decimals are shown.
const SAME_SCORE: f64 = 6e-4;

/// Contrast of texts with the first opaque ground below them (WCAG 2.2, 1.4.3).
const CONTRASTS: &str = "
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => {
      const [r, g, b] = numbers(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = e => {
      const color = getComputedStyle(e).backgroundColor;
      const clear = numbers(color)[3] === 0;
      return clear && e.parentElement ? ground(e.parentElement) : color;
    };
    const contrast = e => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const what = ['h1', 'h1 em', '.lead', '.note', '.chip', '.primary', '.facts', '.doing', 'output', '.tile .caption'];
    return Object.fromEntries(what.map(s => [s, contrast(document.querySelector(s))]));";

/// The files of the demo bundle, one perhaps changed, as paths that a file field takes.
fn bundle_files(folder: &Path, change: impl FnOnce(&Path)) -> String {
    let names = ["bundle.json", "llm.gguf", "vision.gguf", "projections.safetensors"];
    for name in names {
        fs::copy(dist().join("models/demo").join(name), folder.join(name)).unwrap();
    }
    change(folder);
    names.map(|name| folder.join(name).display().to_string()).join("\n")
}

/// Changes the manifest of the bundle in a folder.
fn change_manifest(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("bundle.json");
    let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut bundle);
    fs::write(path, bundle.to_string()).unwrap();
}

/// Waits for a notice that begins with these words.
fn wait_notice(page: &Page, words: &str) {
    let told = "return [...document.querySelectorAll('[data-testid=notice]')].some(n => n.textContent.startsWith";
    page.wait_for(&format!("a notice `{words}`"), &format!("{told}({}))", json!(words)));
}

#[test]
fn another_model_is_taken_from_files_and_a_bad_one_leaves_things_as_they_are() {
    let page = Page::ready();
    page.wait_idle();
    let (album, first) = (page.images(), page.images()[0]);
    let caption = page.caption_of(first);

    // Missing, damaged: named, and the model before still answers.
    let folder = TempDir::new().unwrap();
    let files = bundle_files(folder.path(), |_| {});
    let some: Vec<&str> = files.lines().take(2).collect();
    page.type_into("[data-testid=open-model]", &some.join("\n"));
    page.wait_for(
        "a notice",
        "return document.querySelector('[data-testid=notice]')?.textContent.includes('vision.gguf')",
    );
    let bad = TempDir::new().unwrap();
    let files = bundle_files(bad.path(), |folder| {
        let path = folder.join("vision.gguf");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    });
    page.type_into("[data-testid=open-model]", &files);
    wait_notice(&page, "Your model: vision.gguf: expected sha256");
    page.wait_idle();
    assert_eq!(page.text("tile-caption"), caption);

    // A whole one of another name: everything is looked at anew, and says the same.
    let mine = TempDir::new().unwrap();
    let files = bundle_files(mine.path(), |folder| {
        change_manifest(folder, |bundle| bundle["name"] = "mine".into());
    });
    page.type_into("[data-testid=open-model]", &files);
    page.wait_for(
        "the other model",
        "return document.querySelector('[data-testid=model]')?.textContent.startsWith('mine, ')",
    );
    page.wait_idle();
    assert_eq!(page.images(), album);
    assert!(page.text("indexed").starts_with(&format!("{0} of {0} indexed", album.len())));
    assert!(!page.has("tile-caption"), "captions of the model before are gone");
    assert_eq!(page.caption_of(first), caption);
    assert_quiet_console(&page);
}

/// A copy of the page whose bundle was tampered with.
fn tampered(change: impl FnOnce(&Path)) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
            if from.is_dir() {
                copy(&from, &to);
            } else {
                fs::copy(&from, &to).unwrap();
            }
        }
    }
    let folder = TempDir::new().unwrap();
    copy(&dist(), folder.path());
    change(&folder.path().join("models/demo"));
    folder
}

//! Pictures of the user: picked, and dropped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rscapret_tests::browser::{Page, dist};
use serde_json::json;
use tempfile::TempDir;

use super::{album, assert_quiet_console};

/// A JPEG, its pixels in the formats that lose nothing, and two files that are no pictures.
pub fn files(folder: &Path, source: &Path) -> [PathBuf; 7] {
    let jpeg = folder.join("photo.jpg");
    fs::copy(source, &jpeg).unwrap();
    let picture = image::open(source).unwrap().to_rgb8();
    let evil = folder.join("<img src=x onerror=document.title='taken'>.png");
    let [png, webp, tiff] = ["a.png", "b.webp", "c.tif"].map(|name| folder.join(name));
    for path in [&png, &webp, &tiff, &evil] {
        picture.save(path).unwrap();
    }
    let [text, empty] = ["text.jpg", "empty.png"].map(|name| folder.join(name));
    fs::write(&text, "this is no picture").unwrap();
    fs::write(&empty, "").unwrap();
    [jpeg, png, text, webp, empty, tiff, evil]
}

#[test]
fn pictures_are_described_and_found_and_bad_files_are_named() {
    let page = Page::ready();
    page.wait_idle();
    let album = album();
    let caption = page.caption_of(0);
    let folder = TempDir::new().unwrap();
    let files = files(folder.path(), &dist().join("models/demo/album").join(&album[0]));
    page.upload(&files);
    let taken = "return document.querySelectorAll('.own [data-testid=tile-caption]').length === 5";
    page.wait_for("five pictures of the user", taken);
    page.wait_idle();

    // The files that are none say so, by name; the rest went on.
    let notices = page.texts("notice");
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].starts_with("text.jpg: expected a JPEG, PNG, WebP or TIFF picture"), "{notices:?}");
    assert!(notices[1].starts_with("empty.png: expected a picture but found no bytes"), "{notices:?}");

    // A name is text, whatever stands in it.
    let names: Vec<String> = serde_json::from_value(
        page.script("return [...document.querySelectorAll('.own .name')].map(e => e.textContent)"),
    )
    .unwrap();
    assert_eq!(names, ["<img src=x onerror=document.title='taken'>.png", "c.tif", "b.webp", "a.png", "photo.jpg"]);
    assert_eq!(page.script("return document.querySelectorAll('img[src=x]').length"), json!(0));
    assert_ne!(page.script("return document.title"), json!("taken"));

    // Equal pixels, equal captions; every preview can be shown, TIFF too.
    let own = page.images()[..5].to_vec();
    for &image in &own {
        assert_eq!(page.caption_of(image), caption);
    }
    let shown = "return Promise.all([...document.querySelectorAll('.own img')].map(i => i.decode().then(() => i.naturalWidth)))";
    assert_eq!(page.script(shown), json!([256, 256, 256, 256, 256]));

    // Found like the picture that they are copies of.
    page.click("[data-image='0'] [data-testid=similar]");
    page.wait_ranked(&format!("Ranked by similarity to {}", album[0]));
    let mut best = page.images()[..6].to_vec();
    best.sort_unstable();
    let mut expected = [own, vec![0]].concat();
    expected.sort_unstable();
    assert_eq!(best, expected);

    // One file alone opens at once.
    page.click("[data-testid=show-all]");
    page.upload(&files[..1]);
    assert_eq!(page.finished_caption(), caption);
    page.click("[data-testid=close]");

    // So does one that is dropped, anywhere on the page.
    drop_file(&page, "dropped.jpg", &fs::read(&files[0]).unwrap());
    assert_eq!(page.finished_caption(), caption);
    assert_eq!(page.script("return document.querySelector('dialog[open] .name').textContent"), json!("dropped.jpg"));
    assert_quiet_console(&page);
}

/// Holds a file over the page and drops it, by the events that a browser tells it with.
fn drop_file(page: &Page, name: &str, bytes: &[u8]) {
    page.script(&format!(
        "const held = new DataTransfer();
         held.items.add(new File([new Uint8Array({})], {}, {{type: 'image/jpeg'}}));
         window.tell = kind => document.querySelector('header').dispatchEvent(
           new DragEvent(kind, {{dataTransfer: held, bubbles: true, cancelable: true}}));",
        json!(bytes),
        json!(name)
    ));
    // Not prevented, the browser would leave the page and open the file.
    assert_eq!(page.script("return tell('dragover')"), json!(false));
    page.wait_for("the hint to drop", "return !!document.querySelector('.drop')");
    assert_eq!(page.script("return tell('drop')"), json!(false));
    page.wait_for("the hint to go", "return !document.querySelector('.drop')");
}

//! From the target of a request to a file below the root, or nothing.

use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Error, Result};

/// The folder that is served, free of links.
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(dir: &Path) -> Result<Root> {
        let root = dir.canonicalize().at(dir.display())?;
        if root.is_dir() { Ok(Root(root)) } else { Err(Error::Failed(format!("{}: expected a folder", dir.display()))) }
    }

    /// The file that `target` (path of a request, perhaps its query, too) names; a folder means its `index.html`.
    pub(super) fn resolve(&self, target: &str) -> Option<PathBuf> {
        let path = target.split(['?', '#']).next()?.strip_prefix('/')?;
        let mut path = decode(path)?;
        if path.is_empty() || path.ends_with('/') {
            path.push_str("index.html");
        }
        // `\` and `:` mean something to Windows only, and nothing to us.
        let plain = !path.contains(['\\', ':', '\0'])
            && Path::new(&path).components().all(|c| matches!(c, Component::Normal(_)));
        let file = plain.then(|| self.0.join(path))?.canonicalize().ok()?;
        // A link may lead out of the folder even where the path does not.
        (file.starts_with(&self.0) && file.is_file()).then_some(file)
    }
}

/// Percent-decoding; `None` unless the result is UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Media type by extension; the browser is told not to guess, so it must be right.
pub(super) fn mime(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("txt" | "md") => "text/plain; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        Some("tif" | "tiff") => "image/tiff",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        // gguf, safetensors and whatever else.
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_the_root_resolves() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a b.txt"), "x").unwrap();
        std::fs::write(root.join("sub/index.html"), "x").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let served = Root::new(&root).unwrap();

        for good in ["/a%20b.txt", "/a%20b.txt?v=1", "/sub/", "/sub/index.html", "/sub/?q#f"] {
            assert!(served.resolve(good).is_some(), "{good}");
        }
        let secret = dir.path().join("secret").display().to_string();
        let evil = [
            "/../secret",
            "/sub/../../secret",
            "/%2e%2e/secret",
            "/..%2fsecret",
            "/%2E%2E%2Fsecret",
            "/..\\secret",
            "/..%5csecret",
            "//secret",
            "/link",
            "/sub",
            "/nothing",
            "/%",
            "/%zz",
            "/%ff",
            "/a%00",
            "",
            "secret",
            "/./a%20b.txt",
        ];
        for target in evil.into_iter().map(String::from).chain([secret.clone(), format!("/{secret}")]) {
            assert_eq!(served.resolve(&target), None, "{target}");
        }
    }

    #[test]
    fn the_types_that_the_page_needs() {
        for (file, expected) in [
            ("a.wasm", "application/wasm"),
            ("a.JS", "text/javascript; charset=utf-8"),
            ("bundle.json", "application/json"),
            ("llm.gguf", "application/octet-stream"),
            ("p.safetensors", "application/octet-stream"),
            ("none", "application/octet-stream"),
        ] {
            assert_eq!(mime(Path::new(file)), expected, "{file}");
        }
    }
}

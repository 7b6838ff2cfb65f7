//! Helpers of the tests that cross crates.

pub mod bench;
pub mod browser;
pub mod command;
pub mod golden;
pub mod models;
pub mod tiny;

use std::path::{Path, PathBuf};

/// The folder of the tests: `golden/` and `fixtures/` lie in it.
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file or folder of the real data that lies beside the repository, in `../shared/data`.
///
/// `None` when it is absent, with one visible line that says so; the test then returns.
///
/// # Panics
/// When it is absent and `CI=true`: there no test passes by skipping.
pub fn shared_data(sub: &str) -> Option<PathBuf> {
    let path = tests_dir().join("../../shared/data").join(sub);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "expected real data at `{}`: CI must not skip",
        path.display()
    );
    eprintln!("SKIPPED: no real data at `{}`", path.display());
    None
}

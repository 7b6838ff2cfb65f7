//! Helpers of the tests that cross crates.

pub mod bench;
pub mod browser;
pub mod command;
pub mod golden;
pub mod java;
pub mod kills;
pub mod models;
pub mod tiny;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use pollster::block_on;
use rscapret::{
    Candle,
    weights::{RawTensor, TensorSource as _, safetensors::SafetensorsFile},
};
use rscapret_trainer::cli::device::of_tests;

/// What tests of candle compute on: `$RSCAPRET_TEST_DEVICE` names another device than the processor.
///
/// # Panics
/// Where there is no such device.
pub fn backend() -> Candle {
    of_tests().unwrap()
}

/// The folder of the tests: `golden/` and `fixtures/` lie in it.
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tensors of a safetensors file, without its metadata.
///
/// # Panics
/// When there is no such file.
pub fn tensors(path: &Path) -> BTreeMap<String, RawTensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = block_on(SafetensorsFile::open(bytes)).unwrap();
    file.tensors().iter().map(|info| (info.name.clone(), block_on(file.fetch(&info.name)).unwrap())).collect()
}

/// A file or folder of the real data that lies beside the repository, in `../shared/data`.
///
/// `None` when it is absent, and then it is [`skipped`]; the test returns.
///
/// # Panics
/// When it is absent and `CI=true`.
pub fn shared_data(sub: &str) -> Option<PathBuf> {
    let path = tests_dir().join("../../shared/data").join(sub);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("no real data at `{}`", path.display()));
    None
}

/// Says on standard output, past the capture of libtest, that something is not tested for want of what `why` names;
/// `cargo xtask test` counts such lines.
///
/// # Panics
/// With `CI=true`: there no test passes by skipping.
pub fn skipped(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}\nCI must not skip");
    told(&format!("SKIPPED: {why}"));
}

/// Says something on standard output, past the capture of libtest.
///
/// # Panics
/// When it is closed.
pub fn told(what: &str) {
    writeln!(std::io::stdout(), "{what}").expect("expected an open standard output");
}

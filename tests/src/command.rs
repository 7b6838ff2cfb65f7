//! The program `rscapret`, for tests that use it as a person does.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use serde_json::Value;

/// A call of `rscapret`, which is built on first use: `cargo test` builds no programs of other packages.
///
/// # Panics
/// When it does not build.
pub fn rscapret() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    Command::new(PROGRAM.get_or_init(build))
}

/// What `rscapret` answers in `folder`, on one thread.
///
/// # Panics
/// When it cannot be started.
pub fn call(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = rscapret();
    command.args(arguments).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    command.output().expect("expected the program to start")
}

/// As [`call`], its standard output.
///
/// # Panics
/// When it fails, with what it says.
pub fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = call(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("expected text")
}

fn build() -> PathBuf {
    // The packages of `cargo xtask test`, so that cargo finds the dependencies built with the same features.
    let arguments = ["build", "--workspace", "--exclude", "rscapret-web", "--bin", "rscapret", "--message-format=json"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells a test of its package would pass for a change to build scripts that ask for it (ring's does), and
    // everything above them would be built once more.
    for (name, _) in std::env::vars_os() {
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_package) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.args(arguments).current_dir(root).output().expect("expected cargo to run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("expected text from cargo");
    let artifacts = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program =
        artifacts.filter(|a| a["target"]["name"] == "rscapret").find_map(|a| Some(a["executable"].as_str()?.into()));
    program.expect("expected cargo to name the program")
}

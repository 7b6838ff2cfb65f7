//! Building the page.

use std::path::PathBuf;

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::setup;
use crate::shell::{command, root, run};

pub(crate) const HELP: &str = "\
Builds the page in release into dist/, as `cargo xtask demo` does, and serves nothing.

Usage: cargo xtask page [options]

Options:
  --bench   build the page that `cargo xtask bench` and the browser tests measure and compare with, into
            target/bench-page, instead
";

pub(crate) fn run_command(mut args: Args) -> Result<()> {
    let bench = args.flag("--bench");
    args.finish()?;
    if bench { build_bench() } else { build() }
}

/// Where the page lies once built.
pub(crate) fn dist() -> PathBuf {
    root().join("dist")
}

/// Builds the page in release into [`dist`]; gets the tools first.
pub(crate) fn build() -> Result<()> {
    let path = setup::page_tools()?;
    // Trunk works offline below, so that it can never download a program behind our back: crates come first.
    run(&mut command("cargo fetch --locked --target wasm32-unknown-unknown"))?;
    println!("Building the page in release (some minutes the first time) ...");
    let mut trunk = command("trunk build --release --locked --offline --dist");
    trunk.arg(dist()).current_dir(root().join("web")).env("PATH", path);
    trunk.env("TRUNK_SKIP_VERSION_CHECK", "true");
    // Trunk 0.21 takes only `true` and `false` here and stops at the customary `1`.
    trunk.env_remove("NO_COLOR");
    run(&mut trunk)
}

/// Where the workbench lies once built.
fn bench_dist() -> PathBuf {
    root().join("target/bench-page")
}

/// Builds the page that measures the models and compares the GPU's operations in the browser.
pub(crate) fn build_bench() -> Result<()> {
    let path = setup::page_tools()?;
    let target = "--release --locked --target wasm32-unknown-unknown";
    run(&mut command(&format!("cargo build {target} --package rscapret-web --bin bench --features bench")))?;
    let mut bindgen = command("wasm-bindgen --target web --no-typescript --out-name bench --out-dir");
    bindgen.arg(bench_dist()).arg(root().join("target/wasm32-unknown-unknown/release/bench.wasm"));
    run(bindgen.env("PATH", path))?;
    for file in ["index.html", "page.js", "worker.js"] {
        std::fs::copy(root().join("web/bench").join(file), bench_dist().join(file)).at(file)?;
    }
    Ok(())
}

/// An error unless the page was built.
pub(crate) fn check_built() -> Result<()> {
    if dist().join("index.html").is_file() {
        return Ok(());
    }
    Err(Error::Failed("expected the built page in dist/ but found none\nleave out --no-build".to_string()))
}

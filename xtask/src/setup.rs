//! What the page and the tests need beyond cargo: installed once, said beforehand, versions pinned.

mod tool;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::shell::{command, output, path_with, root, run as run_command, which};
use tool::Tool;

pub(crate) const HELP: &str = "\
Installs what the page needs: the wasm32 target of Rust, Trunk and the wasm-bindgen command line program of exactly
the version in Cargo.lock. Programs go into a cache of yours (~/.cache/rscapret/tools), not into ~/.cargo/bin. Does
nothing the second time.

Usage: cargo xtask setup [options]

Options:
  --tests   what the tests need as well: rustfmt, clippy, Chromium and its driver, Vulkan on the processor
";

/// 0.22 asks for a newer Rust than this workspace does.
const TRUNK: &str = "0.21.14";

const WASM: &str = "wasm32-unknown-unknown";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let tests = args.flag("--tests");
    args.finish()?;
    page_tools()?;
    if tests {
        components()?;
        browser()?;
        vulkan()?;
    }
    println!("Everything is there.");
    Ok(())
}

/// Gets what building the page needs and returns the `PATH` under which Trunk and wasm-bindgen are found.
pub(crate) fn page_tools() -> Result<OsString> {
    wasm_target()?;
    let trunk = Tool { name: "trunk", package: "trunk", version: TRUNK.to_string(), minutes: "about 8 minutes" };
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).at("Cargo.lock")?;
    let bindgen = Tool {
        name: "wasm-bindgen",
        package: "wasm-bindgen-cli",
        version: locked_version(&lock, "wasm-bindgen")?,
        minutes: "4 to 7 minutes",
    };
    path_with([trunk.ensure()?, bindgen.ensure()?])
}

/// rustfmt and clippy: rustup's minimal profile leaves them out.
pub(crate) fn components() -> Result<()> {
    for (component, probe) in [("rustfmt", "cargo fmt --version"), ("clippy", "cargo clippy --version")] {
        if output(&mut command(probe)).is_err() {
            rustup(&format!("component add {component}"))?;
        }
    }
    Ok(())
}

fn wasm_target() -> Result<()> {
    // Asks rustc and not rustup: a distribution's Rust may have the target without rustup.
    let libraries = output(&mut command(&format!("rustc --print target-libdir --target {WASM}")))?;
    if Path::new(&libraries).is_dir() {
        return Ok(());
    }
    println!("Installing the Rust target {WASM} (seconds) ...");
    rustup(&format!("target add {WASM}"))
}

fn rustup(what: &str) -> Result<()> {
    if which("rustup").is_none() {
        return Err(Error::Failed(format!(
            "expected `rustup` to run `rustup {what}`\ninstall it from https://rustup.rs"
        )));
    }
    run_command(&mut command(&format!("rustup {what}")))
}

/// Version of `package` in the text of a Cargo.lock.
fn locked_version(lock: &str, package: &str) -> Result<String> {
    let lock: toml::Table = lock.parse().at("Cargo.lock")?;
    let packages = lock.get("package").and_then(toml::Value::as_array).into_iter().flatten();
    packages
        .filter(|p| p.get("name").and_then(toml::Value::as_str) == Some(package))
        .find_map(|p| p.get("version")?.as_str().map(String::from))
        .ok_or_else(|| Error::Failed(format!("Cargo.lock: expected a package `{package}` but found none")))
}

/// A browser and the program that drives it.
#[derive(Debug, Clone)]
pub struct Browser {
    /// Chromium or Chrome.
    pub chromium: PathBuf,
    /// chromedriver of the same version.
    pub driver: PathBuf,
}

/// Finds Chromium and chromedriver by the variables `CHROME` and `CHROMEDRIVER`, else in `PATH`; installs them on
/// Debian as root.
///
/// # Errors
/// Names the remedy where it cannot install them.
pub fn browser() -> Result<Browser> {
    if let Some(found) = find_browser() {
        return Ok(found);
    }
    const PACKAGES: &str = "chromium chromium-driver";
    apt_get(PACKAGES)?;
    find_browser().ok_or_else(|| {
        Error::Failed(format!(
            "expected Chromium and chromedriver but found none\non Debian or Ubuntu: `sudo apt-get install {PACKAGES}`; \
             elsewhere set CHROME and CHROMEDRIVER to the two programs"
        ))
    })
}

/// Makes sure that there is a Vulkan driver on Linux: the tests of the GPU run on any, a processor's included. Elsewhere
/// the system has one of its own.
pub(crate) fn vulkan() -> Result<()> {
    if !cfg!(target_os = "linux") || has_vulkan() {
        return Ok(());
    }
    const PACKAGES: &str = "mesa-vulkan-drivers libvulkan1";
    apt_get(PACKAGES)?;
    if has_vulkan() {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "expected a Vulkan driver but found none\non Debian or Ubuntu: `sudo apt-get install {PACKAGES}`"
    )))
}

fn has_vulkan() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| std::env::var_os(name).is_some());
    let lists = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];
    named || lists.iter().any(|list| std::fs::read_dir(list).is_ok_and(|mut drivers| drivers.next().is_some()))
}

/// Installs packages on Debian as root; elsewhere does nothing.
fn apt_get(packages: &str) -> Result<()> {
    let root = output(&mut command("id -u")).is_ok_and(|id| id == "0");
    if root && Path::new("/etc/debian_version").exists() && which("apt-get").is_some() {
        println!("Installing {packages} with apt-get (about 2 minutes) ...");
        run_command(command("apt-get update -qq").env("DEBIAN_FRONTEND", "noninteractive"))?;
        let line = format!("apt-get install -y -qq --no-install-recommends {packages}");
        run_command(command(&line).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    Ok(())
}

fn find_browser() -> Option<Browser> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_file());
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    Some(Browser {
        chromium: given("CHROME").or_else(|| names.iter().find_map(|n| which(n)))?,
        driver: given("CHROMEDRIVER").or_else(|| which("chromedriver"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locked_version_is_read_and_its_absence_is_an_error() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.2.3\"\n[[package]]\nname = \"b\"\nversion = \"4.5.6\"\n";
        assert_eq!(locked_version(lock, "b").unwrap(), "4.5.6");
        assert!(locked_version(lock, "c").unwrap_err().to_string().contains("`c`"));
        assert!(locked_version("not toml", "c").is_err());
    }

    #[test]
    fn this_workspace_locks_wasm_bindgen() {
        let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
        assert!(locked_version(&lock, "wasm-bindgen").unwrap().starts_with("0.2."));
    }
}

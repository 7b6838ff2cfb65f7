//! A program of an exact version: from `PATH`, else from the cache, else installed into the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::shell::{command, output, run, which};

/// A command line program of crates.io.
pub(super) struct Tool {
    /// Name of the executable.
    pub name: &'static str,
    /// Name on crates.io.
    pub package: &'static str,
    /// The only version that will do.
    pub version: String,
    /// How long compiling it takes on two cores.
    pub minutes: &'static str,
}

impl Tool {
    /// Folder that holds the executable, installed now if need be.
    pub(super) fn ensure(&self) -> Result<PathBuf> {
        if let Some(dir) = which(self.name).filter(|p| self.fits(p)).as_deref().and_then(Path::parent) {
            return Ok(dir.to_path_buf());
        }
        let home = cache()?.join(format!("{}-{}", self.name, self.version));
        let bin = home.join("bin");
        if self.fits(&self.executable(&bin)) {
            return Ok(bin);
        }
        self.install(&home)?;
        if self.fits(&self.executable(&bin)) {
            return Ok(bin);
        }
        Err(Error::Failed(format!(
            "expected {} {} in {} after its installation but found none",
            self.name,
            self.version,
            bin.display()
        )))
    }

    fn executable(&self, bin: &Path) -> PathBuf {
        bin.join(format!("{}{}", self.name, std::env::consts::EXE_SUFFIX))
    }

    /// Does `program --version` say the wanted version?
    fn fits(&self, program: &Path) -> bool {
        program.is_file()
            && output(Command::new(program).arg("--version")).is_ok_and(|said| says_version(&said, &self.version))
    }

    fn install(&self, home: &Path) -> Result<()> {
        std::fs::create_dir_all(home).at(home.display())?;
        let Tool { package, version, minutes, .. } = self;
        let place = home.display();
        if output(&mut command("cargo binstall -V")).is_ok() {
            println!("Installing {package} {version} into {place} with cargo binstall (seconds), once ...");
            let line = format!("cargo binstall --no-confirm --locked {package}@{version} --root");
            // A ready-made binary may not run here (an older C library): then it is compiled below.
            if run(command(&line).arg(home)).is_ok() && self.fits(&self.executable(&home.join("bin"))) {
                return Ok(());
            }
        }
        println!("Compiling {package} {version} into {place}; {minutes} on two cores, once ...");
        let line = format!("cargo install --force {package} --version ={version} --root");
        let install = |locked: &[&str]| {
            let mut install = command(&line);
            install.arg(home).args(locked).current_dir(home);
            // These programs work for seconds and compile for minutes: their own profiles (Trunk's asks for fat LTO)
            // would double that.
            install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
            run(install.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"))
        };
        install(&["--locked"]).or_else(|_| {
            // A registry mirror may lack a version that the published lock file names.
            println!("Once more without the lock file that {package} was published with ...");
            install(&[])
        })
    }
}

/// `trunk 0.21.14`, `wasm-bindgen 0.2.129 (abc)`: the second word.
fn says_version(said: &str, version: &str) -> bool {
    said.split_whitespace().nth(1) == Some(version)
}

/// Per-user cache of tools.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .ok_or_else(|| Error::Failed("expected a home folder but found none\nset XDG_CACHE_HOME".to_string()))?;
    Ok(base.join("rscapret").join("tools"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_version_fits() {
        assert!(says_version("trunk 0.21.14", "0.21.14"));
        assert!(says_version("wasm-bindgen 0.2.129 (1234abc)", "0.2.129"));
        assert!(!says_version("wasm-bindgen 0.2.12", "0.2.129"));
        assert!(!says_version("", "0.2.129"));
    }

    #[test]
    fn a_program_of_another_version_does_not_fit() {
        let rustc = which("rustc").unwrap();
        let tool = |version: &str| Tool { name: "rustc", package: "", version: version.to_string(), minutes: "" };
        let version = output(command("rustc --version").arg("-v")).unwrap();
        assert!(tool(version.split_whitespace().nth(1).unwrap()).fits(&rustc));
        assert!(!tool("0.0.0").fits(&rustc));
        assert!(!tool("0.0.0").fits(Path::new("no/such/file")));
    }
}

//! Running other programs from the root of the repository.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

/// Root of the repository: where cargo runs this program, for the folder may have moved since it was built.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// In continuous integration nothing may be skipped.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| v == "true")
}

/// A command whose arguments are separated by white space in `line`, to be run at the root.
pub(crate) fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).current_dir(root());
    // What cargo told this program of its package would pass for a change to build scripts that ask for it (ring's does), and
    // everything above them would be built once more. Tests leave it out, too (tests/src/command.rs).
    for (name, _) in std::env::vars_os() {
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(of_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end with this program's input and output; an error says the command and its exit status.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    let status = command.status().at(&line)?;
    if status.success() { Ok(()) } else { Err(Error::Failed(format!("`{line}` failed ({status})"))) }
}

/// Standard output of a command that succeeded, trimmed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = display(command);
    let out = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().at(&line)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(Error::Failed(format!("`{line}` failed ({}): {}", out.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// The command as one would type it.
pub(crate) fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// First file `name` in the folders of `PATH`.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(&file)).find(|p| p.is_file())
}

/// `PATH` with `dirs` before everything else.
pub(crate) fn path_with(dirs: impl IntoIterator<Item = PathBuf>) -> Result<OsString> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let dirs = dirs.into_iter().chain(std::env::split_paths(&old));
    std::env::join_paths(dirs).at("PATH")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo sets them for this very test.
    #[test]
    fn a_command_is_not_told_of_this_package() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        let command = command("cargo build");
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR"].iter().all(|name| removed.contains(&name.as_ref())));
    }

    #[test]
    fn commands_run_at_the_root_and_their_failure_names_them() {
        assert!(root().join("Cargo.lock").is_file());
        assert!(output(&mut command("rustc --version")).unwrap().starts_with("rustc 1."));
        let error = output(&mut command("rustc --no-such-option")).unwrap_err().to_string();
        assert!(error.contains("rustc --no-such-option"), "{error}");
        let error = run(&mut command("no-such-program-here")).unwrap_err().to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
    }

    #[test]
    fn which_finds_what_the_shell_would_find() {
        assert!(which("rustc").is_some());
        assert!(which("no-such-program-here").is_none());
    }
}

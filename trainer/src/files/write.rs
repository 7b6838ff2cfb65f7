//! Writes that are whole or absent.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use rscapret::{Context, Error, Result};

use super::unreadable;

/// Writes a file under another name and then gives it its own: a crash leaves the old content or the new. Where the name is a
/// symbolic link, what it points to is written.
///
/// # Errors
/// [`Error::Io`] with the path: something stands there that is no file (a pipe, a device, a folder), the folder cannot be
/// written; and what `write` answers. What was there before then stays.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let written = || {
        let to = destination(path)?;
        let partial = beside(&to);
        let written = (|| {
            let mut file = File::create(&partial).map_err(unwritable)?;
            write(&mut file)?;
            file.flush().and_then(|()| file.sync_all()).map_err(unwritable)?;
            drop(file);
            std::fs::rename(&partial, to).map_err(unwritable)
        })();
        if written.is_err() {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&partial);
        }
        written
    };
    written().at(path.display())
}

/// Sees that [`write_atomic`] will be able to write there: before work that would be in vain.
///
/// # Errors
/// As [`write_atomic`].
pub(crate) fn expect_writable(path: &Path) -> Result<()> {
    let tried = || {
        let partial = beside(&destination(path)?);
        File::create(&partial).and_then(|_| std::fs::remove_file(&partial)).map_err(unwritable)
    };
    tried().at(path.display())
}

/// The name that a file has until it is whole.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// The file that a path leads to, through all symbolic links, whether it is there already or not.
fn destination(path: &Path) -> Result<PathBuf> {
    // What cannot be looked at is told when it is written.
    let Ok(own) = std::fs::symlink_metadata(path) else { return Ok(path.to_path_buf()) };
    let (path, kind) = match own.is_symlink() {
        false => (path.to_path_buf(), own.file_type()),
        true => match std::fs::canonicalize(path).and_then(|to| Ok((std::fs::metadata(&to)?.file_type(), to))) {
            Ok((kind, to)) => (to, kind),
            // A link to what does not exist yet: where it is to be.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let to = std::fs::read_link(path).map_err(unwritable)?;
                return destination(&path.parent().unwrap_or(Path::new("")).join(to));
            }
            Err(error) => return Err(unwritable(error)),
        },
    };
    if kind.is_file() {
        return Ok(path);
    }
    let found = if kind.is_dir() { "a folder" } else { "a pipe or a device" };
    Err(Error::Io(format!("expected a file to write but found {found}\nname another file")))
}

/// Copies a file of any size, whole or not at all.
///
/// # Errors
/// [`Error::Io`] with the path of the one that cannot be read or written.
pub fn copy_atomic(from: &Path, to: &Path) -> Result<()> {
    folder_of(to)?;
    let mut source = File::open(from).map_err(unreadable).at(from.display())?;
    write_atomic(to, |file| std::io::copy(&mut source, file).map(drop).map_err(unwritable))
}

/// Gives a file another name (a hard link), in the place of whatever had that name.
///
/// # Errors
/// [`Error::Io`] with the path: another file system, or one without links.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    folder_of(to)?;
    let beside = to.with_extension("link");
    let linked = || {
        // The file itself, where `from` is a symbolic link to it.
        let from = std::fs::canonicalize(from)?;
        if to.exists() && from == std::fs::canonicalize(to)? {
            return Ok(());
        }
        std::fs::hard_link(from, &beside)?;
        std::fs::rename(&beside, to)?;
        // Two names of one file are left as they are by the renaming.
        if beside.exists() { std::fs::remove_file(&beside) } else { Ok(()) }
    };
    let failed = |e| Error::Io(format!("expected to link {} here but found: {e}\nlet it be copied", from.display()));
    linked().map_err(failed).at(to.display())
}

fn folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(unwritable).at(folder.display())
}

/// What kept a file from being written, and what to do.
pub(crate) fn unwritable(error: std::io::Error) -> Error {
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk",
        _ => "make the folder one that can be written, or name another",
    };
    Error::Io(format!("expected to write the file but found: {error}\n{remedy}; what was whole before is intact"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |file| file.write_all(b"old").map_err(unwritable)).unwrap();
        let failed = write_atomic(&path, |file| {
            file.write_all(b"ne").map_err(unwritable)?;
            Err(Error::Cancelled)
        });
        assert!(matches!(failed.unwrap_err().root(), Error::Cancelled));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_what_is_no_file_stays() {
        use std::{fs, os::unix::fs::symlink, process::Command};

        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str| write_atomic(&at(name), |file| file.write_all(b"new").map_err(unwritable));
        fs::create_dir(at("far")).unwrap();
        fs::write(at("far/old.txt"), "old").unwrap();
        // To a file, to a link to it, and to what does not exist yet.
        symlink("far/old.txt", at("link")).unwrap();
        symlink("link", at("link of a link")).unwrap();
        symlink("far/none.txt", at("ahead")).unwrap();
        for (name, target) in [("link", "far/old.txt"), ("link of a link", "far/old.txt"), ("ahead", "far/none.txt")] {
            write(name).unwrap();
            assert_eq!(fs::read_to_string(at(target)).unwrap(), "new", "{name}");
            assert!(fs::symlink_metadata(at(name)).unwrap().is_symlink(), "{name}");
            fs::write(at(target), "old").unwrap();
        }

        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        symlink("round", at("round")).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        for (name, found) in [
            ("pipe", "expected a file to write but found a pipe or a device\nname another file"),
            ("null", "expected a file to write but found a pipe or a device"),
            ("far", "expected a file to write but found a folder"),
            ("round", "expected to write the file but found: "),
            ("none/a.txt", "expected to write the file but found: "),
        ] {
            let kind = || fs::symlink_metadata(at(name)).ok().map(|data| data.file_type());
            let before = kind();
            for error in [write(name).unwrap_err(), expect_writable(&at(name)).unwrap_err()] {
                assert!(error.to_string().contains(&format!("{name}: {found}")), "{error}");
            }
            assert_eq!(kind(), before, "{name}");
        }
        expect_writable(&at("new.txt")).unwrap();
        assert!(!at("new.txt").exists() && !at("new.txt.tmp").exists());
    }
}

//! Files that are whole or not there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `path` through a temporary file beside it, which takes its name once everything is on the disk: whoever reads
/// `path`, and whenever the machine stops, finds the old content or the new one.
///
/// # Errors
/// When the system refuses; the old file, if there was one, is as it was.
pub fn write_atomically(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    replace(path, |temporary| {
        let mut to = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
        content(&mut to)?;
        to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    })?;
    sync_folder(path)
}

/// Makes `path` another name of the file `existing`, or a copy of it where the file system has no such thing.
///
/// # Errors
/// When the system refuses; the old file, if there was one, is as it was.
pub fn link_atomically(existing: &Path, path: &Path) -> Result<()> {
    replace(path, |temporary| {
        fs::hard_link(existing, temporary).or_else(|_| {
            fs::copy(existing, temporary)?;
            File::open(temporary)?.sync_all()
        })
    })?;
    sync_folder(path)
}

/// Lets `make` make a file of another name, and gives it the name `path`: whoever reads `path` finds the old content or
/// the new one, but a machine that stops may lose both. For what can be made again. What a symbolic link leads to is
/// replaced, not the link.
///
/// # Errors
/// When the system refuses, or `path` is a device, a pipe or a socket; the old file, if there was one, is as it was.
pub fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "cannot be written: this is not the name of a file"));
    };
    if let Ok(there) = fs::symlink_metadata(path) {
        if there.is_symlink()
            && let Ok(target) = fs::canonicalize(path)
        {
            return replace(&target, make);
        }
        if !there.is_file() && !there.is_dir() && !there.is_symlink() {
            return Err(Error::file(path, "cannot be replaced: it is a device, a pipe or a socket"));
        }
    }
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let done = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    // After a rename there is nothing left to remove, unless both were names of one file already.
    let _ = fs::remove_file(&temporary);
    done.map_err(Error::io(path, "write"))
}

/// Whether a file is what [`replace`] was making when its process was killed.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"))
}

/// A file's new name is on the disk only once its folder is. Windows has no such call.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(path, "write"))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// [`write_atomically`] for bytes at hand.
///
/// # Errors
/// As there.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |to| to.write_all(bytes))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_stay_and_devices_too() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        write_bytes(&at("link"), b"new").unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());

        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["socket", "."] {
            assert!(write_bytes(&at(name), b"new").is_err());
        }
        assert!(!fs::symlink_metadata(at("socket")).unwrap().is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}

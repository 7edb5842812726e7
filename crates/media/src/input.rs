//! Files that are read: regular ones only, as a pipe or a device may never end.

use std::fs::File;
use std::path::Path;

use crate::{Error, Result};

/// Opens a regular file, or a link to one. Pipes, devices and folders are refused before anything waits for them.
pub fn open_file(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        let reason = if kind.is_dir() { "is a folder, expected a file" } else { "is no regular file" };
        return Err(Error::file(path, reason));
    }
    File::open(path).map_err(Error::io(path))
}

/// Reads all of one.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// Reads all of a text file.
pub fn read_text(path: &Path) -> Result<String> {
    let not_text = |e: std::string::FromUtf8Error| {
        Error::file(path, format!("is no text: byte {} is not UTF-8", e.utf8_error().valid_up_to()))
    };
    String::from_utf8(read_file(path)?).map_err(not_text)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("zero.y4m");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let refused = |path: &Path| read_file(path).unwrap_err().to_string();
        assert!(refused(&link).contains("zero.y4m: is no regular file"));
        assert!(refused(folder.path()).contains("is a folder"));
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(refused(&pipe).contains("is no regular file"));
        std::fs::write(folder.path().join("a"), "text").unwrap();
        assert_eq!(read_file(&folder.path().join("a")).unwrap(), b"text");
        assert_eq!(read_text(&folder.path().join("a")).unwrap(), "text");
        std::fs::write(folder.path().join("b"), b"caf\xe9").unwrap();
        let refused = read_text(&folder.path().join("b")).unwrap_err().to_string();
        assert!(refused.contains("b: is no text: byte 3 is not UTF-8"), "{refused}");
    }
}

//! A file that is written whole or not at all.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// The folder that holds a path.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes under a temporary name in the same folder; [`WholeFile::finish`] gives it its own. Dropped before, it leaves nothing.
pub struct WholeFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Opens the temporary file: an unwritable folder is found here, before there is anything to lose.
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::file(path, "expected the name of a file, found a folder"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".navicache-").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666)); // less what the user's mask takes away
        }
        let file = builder.tempfile_in(folder_of(path)).map_err(Error::io(path))?;
        Ok(WholeFile { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Writes `bytes` and finishes.
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(Error::io(&self.path))?;
        self.finish()
    }

    /// Writes what is left and renames.
    pub fn finish(self) -> Result<()> {
        let path = self.path;
        let file = self.file.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
        file.as_file().sync_all().map_err(Error::io(&path))?;
        file.persist(&path).map_err(|e| Error::io(&path)(e.error))?;
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(WholeFile::create(folder.path()).is_err());
        assert!(WholeFile::create(&folder.path().join("no/such/a.json")).is_err());
    }
}

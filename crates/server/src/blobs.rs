//! Files by what is in them: `blobs/ab/<sha256>`. A name is a digest, so that no text of a client becomes part of a
//! path, and the same content is kept once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A blob that no job refers to stays so long: its job may be about to.
const UNREFERENCED: Duration = Duration::from_secs(60 * 60);

/// A folder of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(Blobs { folder })
    }

    /// Keeps bytes, and says their digest.
    pub fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(bytes)?;
        self.keep(file, hex(&Sha256::digest(bytes)))
    }

    /// Takes a file over, and says its digest and length. The file is gone from where it was.
    pub fn adopt(&self, path: &Path) -> io::Result<(String, u64)> {
        let mut file = open_file(path)?;
        let (mut digest, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            length += count as u64;
        }
        let digest = hex(&digest.finalize());
        file.sync_all()?;
        let place = self.place(&digest)?;
        fs::rename(path, &place)?;
        sync(place.parent().unwrap_or(&self.folder))?;
        Ok((digest, length))
    }

    fn keep(&self, file: NamedTempFile, digest: String) -> io::Result<String> {
        file.as_file().sync_all()?;
        let place = self.place(&digest)?;
        file.persist(&place).map_err(|e| e.error)?;
        sync(place.parent().unwrap_or(&self.folder))?;
        Ok(digest)
    }

    /// Where a blob lies. Its folder is there afterwards.
    fn place(&self, digest: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(&digest[..2]);
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            sync(&self.folder)?;
        }
        Ok(folder.join(digest))
    }

    /// The path of a blob.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest.get(..2).unwrap_or("no")).join(digest)
    }

    /// Opens a blob.
    pub fn open_blob(&self, digest: &str) -> io::Result<File> {
        open_file(&self.path(digest))
    }

    /// Removes what no job refers to and is an hour old; says how many bytes are left.
    pub fn sweep(&self, referenced: &HashSet<String>, now: SystemTime) -> io::Result<u64> {
        let mut left = 0;
        for folder in fs::read_dir(&self.folder)?.flatten() {
            let entries: Vec<_> = match folder.file_type()?.is_dir() {
                true => fs::read_dir(folder.path())?.flatten().collect(),
                false => vec![folder],
            };
            for entry in entries {
                let Ok(about) = entry.metadata() else { continue };
                let age = about.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
                let is_kept = entry.file_name().to_str().is_some_and(|name| referenced.contains(name));
                if is_kept || age < UNREFERENCED {
                    left += about.len();
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(left)
    }

    /// Removes a blob.
    pub fn remove(&self, digest: &str) {
        let _ = fs::remove_file(self.path(digest)); // the sweep comes after it
    }
}

/// Opens a file of ours: never what a planted link leads to.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
    options.open(path)
}

/// Puts the names in a folder on disk.
pub fn sync(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// All of a blob.
#[cfg(test)]
pub fn read(blobs: &Blobs, digest: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    blobs.open_blob(digest).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_is_kept_once_and_swept_when_nobody_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let first = blobs.put(b"abc").unwrap();
        assert_eq!(first, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let made = folder.path().join("made");
        fs::write(&made, b"abc").unwrap();
        assert_eq!(blobs.adopt(&made).unwrap(), (first.clone(), 3));
        assert!(!made.exists());
        assert_eq!(read(&blobs, &first), b"abc");

        let second = blobs.put(b"other").unwrap();
        let wanted = HashSet::from([first.clone()]);
        assert_eq!(blobs.sweep(&wanted, SystemTime::now()).unwrap(), 8);
        assert_eq!(blobs.sweep(&wanted, SystemTime::now() + 2 * UNREFERENCED).unwrap(), 3);
        assert!(blobs.path(&first).exists() && !blobs.path(&second).exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_planted_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let digest = sha256(b"x");
        let place = blobs.place(&digest).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &place).unwrap();
        assert!(blobs.open_blob(&digest).is_err());
    }
}

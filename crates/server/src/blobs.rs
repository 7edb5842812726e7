//! Files by what is in them: `blobs/ab/<sha256>`. A name is a digest, so that no text of a client becomes part of a
//! path, and the same content is kept once.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use navicache_media::{fail_point, sync_folder};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A blob that no job refers to stays so long: its job may be about to.
const UNREFERENCED: Duration = Duration::from_secs(60 * 60);

/// A folder of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
    pins: Arc<Pins>,
}

/// How many hold each digest. Whoever removes blobs holds the lock meanwhile.
#[derive(Debug, Default)]
struct Pins(Mutex<HashMap<String, usize>>);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

/// A blob that a job is about to refer to: it is not removed while this lives. Let go of it when the job's row is
/// committed.
#[derive(Debug)]
pub struct Pinned {
    digest: String,
    pins: Arc<Pins>,
}

impl Pinned {
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

impl Blobs {
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(Blobs { folder, pins: Arc::default() })
    }

    fn pin(&self, digest: String) -> Pinned {
        *self.pins.lock().entry(digest.clone()).or_default() += 1;
        Pinned { digest, pins: self.pins.clone() }
    }

    /// Holds a blob that is there; `None` where it is not.
    pub fn hold(&self, digest: &str) -> Option<Pinned> {
        let pinned = self.pin(digest.to_string());
        self.path(digest).exists().then_some(pinned)
    }

    /// Keeps bytes.
    pub fn put(&self, bytes: &[u8]) -> io::Result<Pinned> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        fail_point("picture begun");
        file.write_all(bytes)?;
        fail_point("picture written");
        file.as_file().sync_all()?;
        fail_point("picture synced");
        let pinned = self.pin(sha256(bytes));
        let place = self.place(&pinned.digest)?;
        fail_point("picture has a folder");
        file.persist(&place).map_err(|e| e.error)?;
        fail_point("picture renamed");
        sync_folder(place.parent().unwrap_or(&self.folder))?;
        fail_point("picture kept");
        Ok(pinned)
    }

    /// Takes a file over, and says its length. The file is gone from where it was.
    pub fn adopt(&self, path: &Path) -> io::Result<(Pinned, u64)> {
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
        file.sync_all()?;
        fail_point("blob synced");
        let pinned = self.pin(hex(&digest.finalize()));
        let place = self.place(&pinned.digest)?;
        fail_point("blob has a folder");
        fs::rename(path, &place)?;
        fail_point("blob renamed");
        sync_folder(place.parent().unwrap_or(&self.folder))?;
        fail_point("blob kept");
        Ok((pinned, length))
    }

    /// Where a blob lies. Its folder is there afterwards.
    fn place(&self, digest: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(&digest[..2]);
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            sync_folder(&self.folder)?;
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

    /// Removes what no job refers to and is an hour old; says how many bytes are left. `referenced` says which of some
    /// digests a job refers to.
    pub fn sweep<E: From<io::Error>>(
        &self,
        now: SystemTime,
        referenced: impl Fn(&[String]) -> Result<Vec<String>, E>,
    ) -> Result<u64, E> {
        let mut left = 0;
        let mut old = Vec::new();
        for folder in fs::read_dir(&self.folder)?.flatten() {
            let entries: Vec<_> = match folder.file_type()?.is_dir() {
                true => fs::read_dir(folder.path())?.flatten().collect(),
                false => vec![folder],
            };
            for entry in entries {
                let Ok(about) = entry.metadata() else { continue };
                let age = about.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
                left += about.len();
                if age >= UNREFERENCED {
                    old.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), about.len()));
                }
            }
        }
        // Looked up in two steps: most are referenced, and only the rest is worth the lock.
        let names: Vec<String> = old.iter().map(|(name, _, _)| name.clone()).collect();
        let kept: HashSet<String> = referenced(&names)?.into_iter().collect();
        old.retain(|(name, _, _)| !kept.contains(name));
        let names: Vec<String> = old.iter().map(|(name, _, _)| name.clone()).collect();
        let pins = self.pins.lock();
        let kept = referenced(&names)?;
        for (name, path, bytes) in old {
            if !pins.contains_key(&name) && !kept.contains(&name) {
                fs::remove_file(path)?;
                left -= bytes;
            }
        }
        Ok(left)
    }

    /// Removes blobs, but for those that are pinned or that a job refers to. `referenced` says which of some digests a
    /// job refers to: it is asked while nobody can pin another.
    pub fn remove<E>(
        &self,
        digests: &[String],
        referenced: impl FnOnce(&[String]) -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        let pins = self.pins.lock();
        let kept = referenced(digests)?;
        for digest in digests.iter().filter(|digest| !kept.contains(digest) && !pins.contains_key(*digest)) {
            let _ = fs::remove_file(self.path(digest)); // the sweep comes after it
        }
        Ok(())
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
        assert_eq!(first.digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let first = first.digest().to_string();
        let made = folder.path().join("made");
        fs::write(&made, b"abc").unwrap();
        let (again, length) = blobs.adopt(&made).unwrap();
        assert_eq!((again.digest(), length), (first.as_str(), 3));
        drop(again);
        assert!(!made.exists());
        assert_eq!(read(&blobs, &first), b"abc");

        let second = blobs.put(b"other").unwrap().digest().to_string();
        let sweep = |now| blobs.sweep(now, |_| Ok::<_, io::Error>(vec![first.clone()])).unwrap();
        assert_eq!(sweep(SystemTime::now()), 8);
        assert_eq!(sweep(SystemTime::now() + 2 * UNREFERENCED), 3);
        assert!(blobs.path(&first).exists() && !blobs.path(&second).exists());
    }

    #[test]
    fn what_a_job_is_about_to_refer_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let nobody = |_: &[String]| Ok::<_, io::Error>(Vec::new());
        let pinned = blobs.put(b"abc").unwrap();
        let digest = pinned.digest().to_string();
        let second = blobs.hold(&digest).unwrap();
        drop(pinned);
        // Its only job is deleted, and an old blob is swept, while another job waits for its row.
        blobs.remove(std::slice::from_ref(&digest), nobody).unwrap();
        assert_eq!(blobs.sweep(SystemTime::now() + 2 * UNREFERENCED, nobody).unwrap(), 3);
        assert_eq!(read(&blobs, &digest), b"abc");
        // Who commits between the first look at the rows and the lock is seen by the second.
        let looks = std::cell::Cell::new(0);
        let late = |digests: &[String]| {
            looks.set(looks.get() + 1);
            Ok::<_, io::Error>(if looks.get() == 1 { Vec::new() } else { digests.to_vec() })
        };
        drop(second);
        assert_eq!(blobs.sweep(SystemTime::now() + 2 * UNREFERENCED, late).unwrap(), 3);
        blobs.remove(std::slice::from_ref(&digest), nobody).unwrap();
        assert!(blobs.hold(&digest).is_none());
        assert!(blobs.pins.lock().is_empty());
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

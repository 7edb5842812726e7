//! Where models from the Hugging Face hub are kept: the cache that its own tools use, so that what one downloaded the
//! other finds: `models--OWNER--NAME/{blobs,refs,snapshots}`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The branch that is taken.
pub const REVISION: &str = "main";

/// The folder of all repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct HubCache(pub PathBuf);

impl HubCache {
    /// `HF_HUB_CACHE`, or `hub` in [`home`].
    pub fn from_env() -> Result<Self> {
        Ok(HubCache(match variable("HF_HUB_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => home()?.join("hub"),
        }))
    }

    /// The folder of a repository's files, if it has been downloaded.
    pub fn snapshot(&self, repository: &str) -> Option<PathBuf> {
        let folder = self.repository(repository);
        let commit = fs::read_to_string(folder.join("refs").join(REVISION)).ok()?;
        let snapshot = folder.join("snapshots").join(commit.trim());
        let is_name = !commit.trim().is_empty() && Path::new(commit.trim()).file_name() == Some(commit.trim().as_ref());
        (is_name && snapshot.is_dir()).then_some(snapshot)
    }

    /// Where repositories are kept.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// All repositories of models that are kept, whole or in part, as `OWNER/NAME`.
    pub fn repositories(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let name = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("models--")?.replacen("--", "/", 1))
        };
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names
    }

    /// Bytes that a repository takes on the disk.
    pub fn bytes(&self, name: &str) -> u64 {
        fn of(folder: &Path) -> u64 {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let each = entries.map(|entry| match entry.metadata() {
                Ok(kind) if kind.is_dir() => of(&entry.path()),
                Ok(kind) if kind.is_file() => kind.len(), // links are names of files that count already
                _ => 0,
            });
            each.sum()
        }
        of(&self.repository(name))
    }

    /// Removes a repository; the bytes that it took.
    pub fn remove(&self, name: &str) -> Result<u64> {
        let (folder, bytes) = (self.repository(name), self.bytes(name));
        fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(bytes)
    }

    /// Where a repository is kept.
    pub fn repository(&self, name: &str) -> PathBuf {
        self.0.join(format!("models--{}", name.replace('/', "--")))
    }
}

/// The hub's folder: `HF_HOME`, or `huggingface` in the user's cache.
pub fn home() -> Result<PathBuf> {
    let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        Some(cache.or_else(|| Some(env::home_dir()?.join(".cache")))?.join("huggingface"))
    });
    home.ok_or(Error::NoHome)
}

/// A variable of the environment that is set to something.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

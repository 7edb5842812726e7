//! What can go wrong with a download.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of downloading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something on the hub, or on the way to it.
    #[error("{what}: {reason}")]
    Hub {
        /// Address or repository.
        what: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or its disk is not as it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The cache's folder is not known.
    #[error(transparent)]
    Cache(#[from] navicache_weights::Error),
    /// The caller asked to stop.
    #[error("cancelled; what was downloaded is kept, pull again to go on")]
    Cancelled,
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

pub(crate) fn hub_error(what: &str, reason: &str) -> Error {
    Error::Hub { what: what.to_string(), reason: reason.to_string() }
}

//! What keeps a server from starting, or ends it.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server or a worker cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model cannot be opened.
    #[error(transparent)]
    Engine(#[from] navicache_engine::Error),
    /// A file could not be read or written whole.
    #[error(transparent)]
    Media(#[from] navicache_media::Error),
    /// A file or folder could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store of jobs could not be used.
    #[error("the store of jobs: {0}")]
    Store(#[from] rusqlite::Error),
    /// What was asked for makes no sense, or is not allowed.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Attaches a path to an I/O error.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }
}

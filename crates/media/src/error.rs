//! What can go wrong with a clip, a picture or a file.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of reading or writing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content or name is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// Bytes that are not whole frames.
    #[error("frames {found} bytes: expected whole frames of {width}x{height} RGB, {} bytes each", width * height * 3)]
    Frames {
        /// Number of bytes.
        found: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
}

impl Error {
    /// Attaches a path to an I/O error.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

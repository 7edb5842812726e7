//! What can go wrong when videos are measured.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of measuring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A video could not be read, or a table not written.
    #[error(transparent)]
    Media(#[from] navicache_media::Error),
    /// A network's weights or input do not fit.
    #[error(transparent)]
    Model(#[from] navicache_models::Error),
    /// A file of weights could not be read.
    #[error(transparent)]
    Weights(#[from] navicache_weights::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Videos that cannot be compared.
    #[error("videos to compare {found}: expected {expected} like the reference{hint}")]
    Shape {
        /// Number and size of the video's frames.
        found: String,
        /// Of the reference's.
        expected: String,
        /// What may help.
        hint: &'static str,
    },
    /// A video without frames.
    #[error("expected frames, found none")]
    NoFrames,
    /// Frames that are too small for a metric.
    #[error("frames {width}x{height}: {metric} needs at least {least}x{least}")]
    TooSmall {
        /// Its name.
        metric: &'static str,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Least width and height.
        least: usize,
    },
    /// Weights of LPIPS that are none.
    #[error("weights for LPIPS: {found}: {expected}")]
    LpipsWeights {
        /// What is wrong with them.
        found: String,
        /// What would work.
        expected: &'static str,
    },
    /// A name that is no convention.
    #[error("convention {found}: expected one of {known}")]
    Convention {
        /// The name.
        found: String,
        /// Those there are.
        known: String,
    },
    /// Files that are not there, or cannot be compared.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
}

impl Error {
    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

//! What can go wrong between a request and its video.

use std::path::{Path, PathBuf};

use navicache_control::cache::CacheError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of loading, generating or writing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight, a configuration or an input does not fit the model.
    #[error(transparent)]
    Model(#[from] navicache_models::Error),
    /// Weights could not be found or read.
    #[error(transparent)]
    Weights(#[from] navicache_weights::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The cache method or its options make no sense.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The steps of a run were not taken as they go.
    #[error(transparent)]
    Walk(#[from] navicache_control::cache::WalkError),
    /// The schedule cannot be made.
    #[error(transparent)]
    Schedule(#[from] navicache_control::schedule::ScheduleError),
    /// A clip, a picture or a file could not be read or written.
    #[error(transparent)]
    Media(#[from] navicache_media::Error),
    /// A video could not be measured.
    #[error(transparent)]
    Metrics(#[from] navicache_metrics::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A request cannot be met as it stands.
    #[error("{what} {found}: {expected}")]
    Request {
        /// Which part of it, by its option name.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would work.
        expected: String,
    },
    /// The device is not there, or not in this build.
    #[error("device {device}: {reason}")]
    Device {
        /// As asked for.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// The latents stopped being numbers.
    #[error(
        "step {step} of {steps}: the latents are not finite any more; the weights hold NaN or infinity, \
         or the settings make the model diverge"
    )]
    NotFinite {
        /// Index of the step after which it was seen, from 1.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// The caller asked to stop.
    #[error("cancelled after {step} of {steps} steps")]
    Cancelled {
        /// Steps done.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// The caller asked to stop when all steps were done.
    #[error("cancelled while decoding")]
    DecodingCancelled,
}

impl Error {
    /// Attaches a path to an I/O error.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// A file whose content is wrong.
    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

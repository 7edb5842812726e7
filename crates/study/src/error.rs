//! What can go wrong in a study of many generations.

use std::path::Path;

use navicache_engine::control::cache::CacheError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of comparing or timing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A generation failed, or a request or a file of this crate makes no sense.
    #[error(transparent)]
    Engine(#[from] navicache_engine::Error),
    /// A video could not be measured.
    #[error(transparent)]
    Metrics(#[from] navicache_metrics::Error),
    /// What a study is made of makes no sense.
    #[error("{what} {found}: {expected}")]
    Invalid {
        /// Which part of it.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would work.
        expected: String,
    },
}

impl Error {
    /// Whether the caller asked to stop.
    pub fn is_cancelled(&self) -> bool {
        use navicache_engine::Error as Engine;
        matches!(self, Error::Engine(Engine::Cancelled { .. } | Engine::DecodingCancelled))
    }

    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Engine(navicache_engine::Error::Io { path, source })
    }

    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Engine(navicache_engine::Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() })
    }

    pub(crate) fn invalid(what: &'static str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Invalid { what, found: found.into(), expected: expected.into() }
    }

    pub(crate) fn cancelled(step: usize, steps: usize) -> Error {
        Error::Engine(navicache_engine::Error::Cancelled { step, steps })
    }
}

/// What the engine wraps is wrapped by it here too.
macro_rules! through_engine {
    ($($inner:ty),*) => {
        $(impl From<$inner> for Error {
            fn from(error: $inner) -> Self {
                Error::Engine(error.into())
            }
        })*
    };
}
through_engine!(candle_core::Error, navicache_engine::models::Error, navicache_media::Error, CacheError);

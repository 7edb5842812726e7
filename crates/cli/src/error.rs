//! What can go wrong with a command.

use std::process::ExitCode;

use navicache_engine::Kind;
use navicache_engine::control::cache::CacheError;

use crate::checkpoints::STEPS_LEFT;
use crate::terminal::INTERRUPTED;

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit code where what was asked for makes no sense, as of the command line's own errors.
pub const MISUSE: u8 = 2;

/// An error of some library, as it says it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Arguments that make no sense together, or with what files hold.
    #[error("{what} {found}: {expected}")]
    Arguments { what: &'static str, found: String, expected: String },
    /// A part of what was asked for could not be had.
    #[error("{what} {found}: {expected}")]
    Unfinished { what: &'static str, found: String, expected: String },
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Tune(#[from] navicache_engine::replay::tune::TuneError),
    #[error(transparent)]
    Engine(#[from] navicache_engine::Error),
    #[error(transparent)]
    Hub(#[from] navicache_hub::Error),
    #[error(transparent)]
    Study(#[from] navicache_study::Error),
    #[error(transparent)]
    Media(#[from] navicache_media::Error),
    #[cfg(feature = "server")]
    #[error(transparent)]
    Server(#[from] navicache_server::Error),
    #[error(transparent)]
    Metrics(#[from] navicache_metrics::Error),
}

impl Error {
    /// What the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            _ if self.is_cancelled() => ExitCode::from(INTERRUPTED),
            Error::Engine(navicache_engine::Error::Stopped { .. }) => ExitCode::from(STEPS_LEFT),
            Error::Arguments { .. } | Error::Config(_) | Error::Cache(_) => ExitCode::from(MISUSE),
            Error::Study(navicache_study::Error::Invalid { .. }) => ExitCode::from(MISUSE),
            _ if self.engine().is_some_and(|error| error.kind() == Kind::Invalid) => ExitCode::from(MISUSE),
            _ => ExitCode::FAILURE,
        }
    }

    /// The engine's error that it is, if it is one.
    pub fn engine(&self) -> Option<&navicache_engine::Error> {
        match self {
            Error::Engine(error) | Error::Study(navicache_study::Error::Engine(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        use navicache_engine::Error as Engine;
        match self {
            Error::Engine(error) => matches!(error, Engine::Cancelled { .. } | Engine::DecodingCancelled),
            Error::Hub(error) => matches!(error, navicache_hub::Error::Cancelled),
            Error::Study(error) => error.is_cancelled(),
            #[cfg(feature = "server")]
            Error::Server(_) => false,
            Error::Arguments { .. } | Error::Unfinished { .. } | Error::Config(_) => false,
            Error::Cache(_) | Error::Tune(_) | Error::Media(_) | Error::Metrics(_) => false,
        }
    }
}

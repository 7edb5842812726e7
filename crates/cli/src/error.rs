//! What can go wrong with a command.

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of some library, as it says it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] navicache_engine::Error),
    #[error(transparent)]
    Hub(#[from] navicache_hub::Error),
    #[error(transparent)]
    Study(#[from] navicache_study::Error),
    #[error(transparent)]
    Media(#[from] navicache_media::Error),
}

impl Error {
    /// Whether the user asked to stop.
    pub fn is_cancelled(&self) -> bool {
        use navicache_engine::Error as Engine;
        match self {
            Error::Engine(error) => matches!(error, Engine::Cancelled { .. } | Engine::DecodingCancelled),
            Error::Hub(error) => matches!(error, navicache_hub::Error::Cancelled),
            Error::Study(error) => error.is_cancelled(),
            Error::Media(_) => false,
        }
    }
}

//! What can go wrong inside a model.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a text encoder, a denoiser or a VAE.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed: out of memory, or a defect of ours.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),

    /// A weight that the architecture needs is not in the files.
    #[error("{name}: expected {expected:?}, found nothing by that name in {place}")]
    MissingWeight {
        /// Full path of the weight, as in the file.
        name: String,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
        /// File or folder that was searched.
        place: String,
    },

    /// A weight has another shape than the configuration says.
    #[error("{name}: expected {expected:?}, found {found:?} in {place}")]
    WrongShape {
        /// Full path of the weight, as in the file.
        name: String,
        /// Shape that the configuration asks for.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
        /// File that holds it.
        place: String,
    },

    /// A weight could not be read.
    #[error("{name}: {reason} in {place}")]
    UnreadableWeight {
        /// Full path of the weight, as in the file.
        name: String,
        /// Why.
        reason: String,
        /// File that holds it.
        place: String,
    },

    /// A configuration asks for something this code does not do.
    #[error("{place}: {field} is {found}, expected {expected}")]
    Config {
        /// Which configuration file.
        place: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },

    /// An input does not fit the model.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What the model takes.
        expected: String,
        /// What it was given.
        found: String,
    },
}

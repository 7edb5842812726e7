//! What can go wrong between a request and its video.

use std::path::{Path, PathBuf};

use navicache_control::cache::CacheError;

use crate::field::Field;

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
    #[error("{field} {found}: {expected}")]
    Invalid {
        /// Which part of it.
        field: Field,
        /// Its value.
        found: String,
        /// What would work.
        expected: String,
    },
    /// What a request names is not there.
    #[error("{field} {found}: {expected}")]
    Missing {
        /// Which part of it.
        field: Field,
        /// What it names.
        found: String,
        /// Where it could come from.
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
    /// Decoded frames are no numbers.
    #[error(
        "the VAE's output is not finite: its weights hold NaN, infinity or numbers beyond all bounds; get them again"
    )]
    FramesNotFinite,
    /// The caller asked to stop.
    #[error("cancelled after {step} of {steps} steps")]
    Cancelled {
        /// Steps done.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// As many steps are done as were asked for; others are left, in a checkpoint.
    #[error("stopped after {step} of {steps} steps, as was asked for; {} holds them", checkpoint.display())]
    Stopped {
        /// Steps done.
        step: usize,
        /// Number of steps.
        steps: usize,
        /// What the others can be done from.
        checkpoint: PathBuf,
    },
    /// The caller asked to stop when all steps were done.
    #[error("cancelled while decoding")]
    DecodingCancelled,
}

/// Kinds of errors, for whoever has to answer them: with an exit code, or a status of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// The request makes no sense, for this model or at all.
    Invalid,
    /// A file or a model is not there.
    Missing,
    /// A file is there and is not what it should be.
    Damaged,
    /// The machine lacks something: a device, memory, room on the disk.
    Unavailable,
    /// The computation went wrong.
    Failed,
    /// The caller asked to stop.
    Cancelled,
}

/// What a machine can run out of while it makes a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Room on a disk, or what a user may have of it.
    Disk,
    /// A GPU's memory. Where a processor's runs out, the system ends the process.
    Memory,
}

impl Error {
    /// What has run out, where that is what went wrong.
    pub fn lacks(&self) -> Option<Lack> {
        use {navicache_media::Error as Media, navicache_weights::Error as Weights};
        match self {
            Error::Io { source, .. }
            | Error::Media(Media::Io { source, .. })
            | Error::Weights(Weights::Io { source, .. }) => {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                matches!(source.kind(), StorageFull | QuotaExceeded).then_some(Lack::Disk)
            }
            // The driver's error comes in a box; CUDA_ERROR_OUT_OF_MEMORY is all that can be known of it.
            Error::Tensor(error)
            | Error::Model(navicache_models::Error::Tensor(error))
            | Error::Weights(Weights::Tensor(error)) => {
                error.to_string().to_lowercase().replace('_', " ").contains("out of memory").then_some(Lack::Memory)
            }
            _ => None,
        }
    }

    /// Which part of a request it is about, where it is about one.
    pub fn field(&self) -> Option<Field> {
        match self {
            Error::Invalid { field, .. } | Error::Missing { field, .. } => Some(*field),
            Error::Cache(_) => Some(Field::Cache),
            Error::Device { .. } => Some(Field::Device),
            _ => None,
        }
    }

    /// What kind of error it is.
    pub fn kind(&self) -> Kind {
        use {navicache_media::Error as Media, navicache_models::Error as Models, navicache_weights::Error as Weights};
        match self {
            Error::Invalid { .. } | Error::Cache(_) | Error::Schedule(_) => Kind::Invalid,
            Error::Weights(Weights::Lora { .. }) | Error::Media(Media::Frames { .. }) => Kind::Invalid,
            Error::Model(Models::Input { .. }) => Kind::Invalid,
            Error::Missing { .. } => Kind::Missing,
            Error::Io { source, .. }
            | Error::Media(Media::Io { source, .. })
            | Error::Weights(Weights::Io { source, .. }) => Kind::of_io(source),
            Error::Model(_) | Error::Media(_) | Error::Weights(_) | Error::File { .. } => Kind::Damaged,
            Error::Device { .. } => Kind::Unavailable,
            Error::Tensor(_) | Error::Walk(_) | Error::NotFinite { .. } | Error::FramesNotFinite => Kind::Failed,
            Error::Cancelled { .. } | Error::Stopped { .. } | Error::DecodingCancelled => Kind::Cancelled,
        }
    }

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

impl Kind {
    /// Lower-case name, as in events.
    pub fn name(self) -> &'static str {
        self.into()
    }

    fn of_io(error: &std::io::Error) -> Kind {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Kind::Missing,
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::IsADirectory => Kind::Damaged,
            _ => Kind::Unavailable,
        }
    }
}

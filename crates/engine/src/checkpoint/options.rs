//! What a user says of checkpoints.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a generation leaves checkpoints, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The file; it always holds the last one, whole. A file that is there already is refused, unless it is what the
    /// run goes on from. [`generate_to`](crate::generate_to) removes it once the video is written.
    pub path: PathBuf,
    /// After which steps.
    #[serde(default)]
    pub every: Every,
    /// Stop after so many steps of this run, if others are left: [`Error::Stopped`](crate::Error::Stopped).
    #[serde(default)]
    pub stop_after: Option<NonZeroUsize>,
    /// Whether the file stays when the video is written.
    #[serde(default)]
    pub keep: bool,
}

/// After which steps a checkpoint is written. One is always written after the last step, and when the run is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// As often as a hundredth of the time allows.
    #[default]
    Auto,
    /// After every so many.
    #[serde(untagged)]
    Steps(NonZeroUsize),
}

impl Checkpoint {
    /// The video is written: what the file was for is done.
    pub(crate) fn close(&self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path); // nothing is lost should it stay
        }
    }
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Every::Auto),
            (_, Ok(steps)) => Ok(Every::Steps(steps)),
            _ => Err("expected auto or a number of steps".to_string()),
        }
    }
}

/// A checkpoint to go on from. What the request leaves open is taken from it; what it says has to agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The file.
    pub path: PathBuf,
    /// Whether a checkpoint of another build of this program, or of another kind of processor, will do: the rest of the
    /// run may then differ in the last digits.
    #[serde(default)]
    pub allow_other_build: bool,
}

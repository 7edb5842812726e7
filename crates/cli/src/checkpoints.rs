//! Options of checkpoints.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ArgGroup;
use navicache_engine::{Checkpoint, Every, Resume};

/// Exit code where steps are left because it was asked for: "try again", as mail programs have it.
pub const STEPS_LEFT: u8 = 75;

#[derive(clap::Args)]
#[command(group(ArgGroup::new("checkpoint or resume").args(["checkpoint", "resume"]).multiple(true)))]
pub struct Checkpoints {
    /// Keep what is done here while the video is made; after a crash, --resume goes on from it. It is removed once the
    /// video is written
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,

    /// After how many steps: a number, or auto, as often as a hundredth of the time allows [default: auto]
    #[arg(long, value_name = "auto|N", requires = "checkpoint or resume")]
    checkpoint_every: Option<Every>,

    /// Keep the checkpoint when the video is written
    #[arg(long, requires = "checkpoint or resume")]
    keep_checkpoint: bool,

    /// Go on from a checkpoint. It knows the prompt and all else but model, picture and output; what is given beside it
    /// has to agree, but for --scale. New checkpoints go to the same file, unless --checkpoint names another
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    /// Go on though another build of this program made the checkpoint; the rest may then differ in the last digits
    #[arg(long, requires = "resume")]
    allow_other_build: bool,

    /// Stop after so many steps, with exit code 75 if others are left
    #[arg(long, value_name = "N", requires = "checkpoint or resume")]
    stop_after: Option<NonZeroUsize>,
}

impl Checkpoints {
    /// Where checkpoints are left: where it is said, or where the run goes on from.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            path: self.checkpoint.as_ref().or(self.resume.as_ref())?.clone(),
            every: self.checkpoint_every.unwrap_or_default(),
            stop_after: self.stop_after,
            keep: self.keep_checkpoint,
        })
    }

    /// What the run goes on from.
    pub fn resume(&self) -> Option<Resume> {
        let path = self.resume.clone()?;
        Some(Resume { path, allow_other_build: self.allow_other_build })
    }
}

//! Checkpoints: a generation that was stopped, killed or lost power goes on after its last one, bit for bit.
//!
//! * [`file`]: what is in the file, and how it is written and read.
//! * [`conditions`]: what of it need not be encoded again.
//! * [`identity`]: what has to be the same for a run to go on, and what is said where it is not.
//! * [`options`]: what a user says of them.
//! * here: when one is written.

mod conditions;
mod file;
mod identity;
mod options;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use navicache_control::cache::Guarded;

use crate::denoise::{Sampler, Setup, Start};
use crate::event::{Event, Reporter};
use crate::family::{Conditioning, ImageConditioning, Inputs};
use crate::{Error, Request, Result};

use conditions::Conditions;
pub(crate) use file::{Saved, open};
pub(crate) use identity::Identity;
pub use options::{Checkpoint, Every, Resume};

/// Refuses a run that does not go on from what it says it does, and one whose checkpoints could not be written; hands
/// out who writes them, if they are asked for. `identity`: of the run.
pub(crate) fn prepare(
    request: &Request,
    saved: Option<&Saved>,
    identity: impl FnOnce() -> Result<Identity>,
    reporter: &mut Reporter,
) -> Result<Option<Keeper>> {
    if request.checkpoint.is_none() && saved.is_none() {
        return Ok(None);
    }
    let mut identity = identity()?;
    if let Some(saved) = saved {
        let allowed = request.resume.as_ref().is_some_and(|resume| resume.allow_other_build);
        let waived = saved.identity.check(&identity, allowed).map_err(|reason| Error::file(&saved.path, reason))?;
        if let Some(reason) = waived {
            reporter.warn(format!("{} {reason}", saved.path.display()));
        }
        identity.go_on_from(&saved.identity);
    }
    request.checkpoint.clone().map(|checkpoint| Keeper::new(checkpoint, identity, saved)).transpose()
}

impl Saved {
    /// A request with what it leaves open filled in.
    pub fn complete(&self, given: &Request) -> Result<Request> {
        self.identity.complete(given).map_err(|reason| Error::file(&self.path, reason))
    }

    /// The encoded prompts of so many branches and the encoded picture, each where it is in the file: see
    /// [`Conditions::read`].
    pub fn conditions(
        &self,
        like: &Conditioning,
        branches: usize,
        latents: &[usize; 5],
    ) -> Result<(Option<Vec<Inputs>>, Option<ImageConditioning>)> {
        self.conditions.read(like, branches, latents).map_err(|reason| Error::file(&self.path, reason))
    }

    /// Whether the whole run began with latents from a file.
    pub fn began_with_latents(&self) -> bool {
        self.identity.has_latents()
    }

    /// A sampler that goes on from it. What the user was warned of before is part of the report.
    pub fn go_on<'a>(
        self,
        setup: Setup<'a>,
        start: Start,
        policy: Guarded,
        reporter: &mut Reporter,
    ) -> Result<Sampler<'a>> {
        for warning in self.warnings {
            if !reporter.warnings.contains(&warning) {
                reporter.warnings.push(warning);
            }
        }
        Sampler::resume(setup, start, policy, self.state).map_err(|e| Error::file(&self.path, e.to_string()))
    }
}

/// With [`Every::Auto`]: steps and time before the first checkpoint. Less is not worth a file.
const FIRST_STEPS: usize = 3;
const FIRST_AFTER: Duration = Duration::from_secs(2);
/// With [`Every::Auto`]: time between two checkpoints, in times of what writing the last one took.
const TIME_PER_COST: u32 = 100;

/// Writes the checkpoints of one generation.
pub(crate) struct Keeper {
    checkpoint: Checkpoint,
    identity: Identity,
    /// What the run is conditioned on.
    conditions: Conditions,
    /// Since when the steps run, and how many were done before.
    began: Instant,
    done_before: usize,
    /// When the last one was written or tried, and how long that took.
    last: Option<(Instant, Duration)>,
    /// Whether the last one could not be written, so that this was said.
    failing: bool,
}

impl Keeper {
    /// Refuses a place that cannot be written to, and one where something lies that would be lost. `resumed`: what the
    /// run goes on from.
    fn new(checkpoint: Checkpoint, identity: Identity, resumed: Option<&Saved>) -> Result<Self> {
        let path = &checkpoint.path;
        let is_own = resumed.is_some_and(|saved| same_file(&saved.path, path));
        if !is_own && path.exists() {
            let reason = match file::progress(path) {
                Some((step, steps)) => format!(
                    "holds {step} of {steps} steps of an earlier run, which would be lost: resume it, or remove the file"
                ),
                None => "is there already and no checkpoint; it is left as it is".to_string(),
            };
            return Err(Error::file(path, reason));
        }
        crate::WholeFile::create(path)?; // unwritable? now is the time to know
        Ok(Keeper {
            checkpoint,
            identity,
            conditions: Conditions::default(),
            began: Instant::now(),
            done_before: resumed.map_or(0, |saved| saved.step),
            last: None,
            failing: false,
        })
    }

    /// Keeps what the run is conditioned on in the file.
    pub fn keep(&mut self, conditioning: &Conditioning) {
        self.conditions = Conditions::of(conditioning);
    }

    /// A step is done: writes a checkpoint if one is due. Where it cannot be written the run goes on, and the last one
    /// stays.
    ///
    /// # Errors
    /// The run stops here, because it was asked to.
    pub fn after_step(&mut self, sampler: &mut Sampler, reporter: &mut Reporter) -> Result<()> {
        let (done, steps) = (sampler.done(), sampler.steps());
        let here = NonZeroUsize::new(done - self.done_before);
        let stops = done < steps && self.checkpoint.stop_after.is_some_and(|most| here >= Some(most));
        if !stops && !reporter.cancelled && !self.is_due(done, steps) {
            return Ok(());
        }
        let clock = Instant::now();
        let state = sampler.save()?;
        let path = &self.checkpoint.path;
        let written = file::write(path, steps, &self.identity, (state, &self.conditions), &reporter.warnings);
        self.last = Some((Instant::now(), clock.elapsed()));
        match written {
            Ok(()) => {
                self.failing = false;
                reporter.emit(Event::Checkpoint { path, step: done, steps });
            }
            Err(error) if stops => return Err(error),
            Err(error) => {
                if !self.failing {
                    reporter.warn(format!("no checkpoint after step {done}, the run goes on: {error}"));
                }
                self.failing = true;
            }
        }
        if stops { Err(Error::Stopped { step: done, steps, checkpoint: path.clone() }) } else { Ok(()) }
    }

    fn is_due(&self, done: usize, steps: usize) -> bool {
        let is_worth_it = || match self.last {
            None => done >= FIRST_STEPS && self.began.elapsed() >= FIRST_AFTER,
            Some((at, cost)) => at.elapsed() >= cost * TIME_PER_COST,
        };
        done == steps
            || match self.checkpoint.every {
                Every::Auto => is_worth_it(),
                Every::Steps(every) => done.is_multiple_of(every.get()),
            }
    }
}

/// Whether two names are of one file.
fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

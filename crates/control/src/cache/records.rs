//! What a walk leaves: what became of every step, and what can go wrong.

use super::{Approx, Kept, Quantity, Scope};
use crate::guidance::Branch;
use crate::strip::Ran;

/// What became of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Its index.
    pub step: usize,
    /// Its branches, in order.
    pub branches: Vec<BranchRecord>,
    /// What was approximated, and how.
    pub approximated: Vec<Approximated>,
    /// Everything that was measured, as far as it was read: see `Session::finish`.
    pub measured: Vec<(Scope, Quantity, f64)>,
}

/// What became of one branch of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRecord {
    /// Which branch.
    pub branch: Branch,
    /// Of each unit, whether it was computed.
    pub units: Vec<bool>,
}

impl BranchRecord {
    /// Units that were computed.
    pub fn computed(&self) -> usize {
        self.units.iter().filter(|&&unit| unit).count()
    }

    /// What ran of it.
    pub fn ran(&self) -> Ran {
        match self.computed() {
            0 => Ran::Reused,
            all if all == self.units.len() => Ran::Computed,
            _ => Ran::Mixed,
        }
    }
}

/// Something that was approximated.
#[derive(Debug, Clone, PartialEq)]
pub struct Approximated {
    /// The step.
    pub step: usize,
    /// What of it.
    pub scope: Scope,
    /// How.
    pub approx: Approx,
    /// Weights of what was kept of the branch that the scope is about (of a step, the first), newest first. Empty where
    /// nothing is kept: the solver skips the step.
    pub weights: Vec<f64>,
    /// The steps it was kept at.
    pub anchors: Vec<usize>,
}

/// The walk was not taken as it goes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WalkError {
    /// A step that the schedule does not have.
    #[error("step {step} of a schedule of {steps} steps, counted from 0")]
    OutsideSchedule {
        /// The step.
        step: usize,
        /// Steps of the schedule.
        steps: usize,
    },
    /// A branch or an end without a step that was begun, or a branch of a step that the solver skips.
    #[error("{what} outside of a step: begin_step comes first, and a skipped step has no branches")]
    NoStep {
        /// What was called.
        what: &'static str,
    },
    /// A branch that this run does not have.
    #[error("branch {} at step {step}: the branches of this run are {known}", branch.name())]
    UnknownBranch {
        /// The step.
        step: usize,
        /// The branch.
        branch: Branch,
        /// The branches there are.
        known: String,
    },
    /// A policy reuses what it did not ask to keep.
    #[error(
        "the cache policy reuses {kept:?} of branch {} at step {step}, and nothing was kept in that form: a policy may reuse \
         only what it asks to keep",
        branch.name()
    )]
    NothingKept {
        /// The step.
        step: usize,
        /// The branch.
        branch: Branch,
        /// What is missing.
        kept: Kept,
    },
    /// The branches that the first step showed do not fit the method.
    #[error("cache method {method}: {reason}")]
    Refused {
        /// The method.
        method: String,
        /// Why.
        reason: String,
    },
}

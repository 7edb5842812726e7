//! What a walk leaves: what became of every step, and what can go wrong.

use serde::{Deserialize, Serialize};

use super::watch::Alarm;
use super::{Approx, Kept, Quantity, Run, Scope};
use crate::guidance::Branch;
use crate::resume::ResumeError;
use crate::strip::Ran;

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Its index.
    pub step: usize,
    /// Its branches, in order.
    pub branches: Vec<BranchRecord>,
    /// What was approximated, and how.
    pub approximated: Vec<Approximated>,
    /// Everything that was measured, as far as it was read: see `Session::finish`.
    #[serde(with = "crate::exact::list")]
    pub measured: Vec<(Scope, Quantity, f64)>,
    /// The method's threshold that was in force, where a target or a guard moves it.
    pub threshold: Option<f64>,
    /// Alarms that were raised since the step before.
    pub alarms: Vec<Alarm>,
}

impl StepRecord {
    /// Of a step that begins.
    pub fn new(step: usize) -> Self {
        StepRecord {
            step,
            branches: Vec::new(),
            approximated: Vec::new(),
            measured: Vec::new(),
            threshold: None,
            alarms: Vec::new(),
        }
    }

    /// Refuses one that is not of the run.
    pub(super) fn check(&self, run: &Run) -> Result<(), ResumeError> {
        let (step, steps, units) = (self.step, run.steps.len(), run.units.len());
        ResumeError::unless(step < steps, "steps", format!("step {step}"), format!("{steps} steps"))?;
        for Approximated { step: of, anchors, .. } in &self.approximated {
            let there = format!("step {of} from {anchors:?}");
            let fits = *of == step && anchors.iter().all(|anchor| *anchor < step);
            ResumeError::unless(fits, "what was approximated", there, format!("in step {step}"))?;
        }
        for branch in &self.branches {
            let there = format!("{} of {} units", branch.branch.name(), branch.units.len());
            let fits = run.branches.contains(&branch.branch) && branch.units.len() == units;
            ResumeError::unless(fits, "branches", there, format!("{:?} of {units} units", run.branches))?;
        }
        Ok(())
    }

    /// The share of its work that was computed.
    pub fn share(&self) -> f64 {
        let all: usize = self.branches.iter().map(|branch| branch.units.len()).sum();
        self.branches.iter().map(BranchRecord::computed).sum::<usize>() as f64 / all.max(1) as f64
    }
}

/// What became of one branch of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchRecord {
    /// Which branch.
    pub branch: Branch,
    /// Of each unit, whether it was computed.
    #[serde(with = "units")]
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

/// Units as text, a character each: `S` computed, `.` not.
mod units {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(units: &[bool], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&units.iter().map(|&ran| if ran { 'S' } else { '.' }).collect::<String>())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<bool>, D::Error> {
        let ran = |symbol: char| match symbol {
            'S' => Ok(true),
            '.' => Ok(false),
            other => Err(D::Error::custom(format!("unit {other:?}: expected S or ."))),
        };
        String::deserialize(from)?.chars().map(ran).collect()
    }
}

/// Something that was approximated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approximated {
    /// The step.
    pub step: usize,
    /// What of it.
    pub scope: Scope,
    /// How.
    pub approx: Approx,
    /// Weights of what was kept of the branch that the scope is about (of a step, the first), newest first. Empty where
    /// nothing is kept: the solver skips the step.
    #[serde(with = "crate::exact::list")]
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
    /// A state was to be saved within a step, or before the branches of the run were known.
    #[error("a state is saved between steps: within one, and before the branches are known, there is none")]
    NotBetweenSteps,
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

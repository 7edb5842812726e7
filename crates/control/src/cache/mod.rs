//! Cache policies: which computations run, and how the others are approximated.
//!
//! A [`Method`] is a method as configured; [`Method::start`] makes its running state, a [`Policy`], for one generation.
//! The policy is dropped when the generation ends. There is no `reset`, so nothing can leak from one video into the
//! next.
//!
//! Questions are about a [`Scope`]: the whole step, one branch of it, or a span of units of one branch. Whoever runs
//! the model asks from the widest to the narrowest, and only where the policy has a question ([`Asks`]). *Reuse*
//! settles everything inside the scope; *compute* goes on to the questions inside it, and to the model where there are
//! none.
//!
//! To add a method: one file here with its paper, its `Config` and its policy; one line in [`CacheConfig`]; its presets
//! in `presets.json`.

/// Declares a method's options: the record, and the list of them with their meaning for `navicache methods`.
macro_rules! options {
    ($( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])? $field:ident: $type:ty, )*) => {
        /// Options of the method.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Config {
            $( $(#[doc = $doc])+ $(#[serde($($serde)*)])? pub $field: $type, )*
        }

        impl Config {
            /// Every option with its meaning.
            pub(crate) const OPTIONS: &'static [(&'static str, &'static str)] =
                &[$( (stringify!($field), concat!($($doc),+)) ),*];
        }
    };
}

/// What every method of this folder says of itself in the same words.
macro_rules! described {
    () => {
        fn name(&self) -> &str {
            ABOUT.name
        }

        fn options(&self) -> serde_json::Value {
            serde_json::json!(self)
        }
    };
}

pub mod adacache;
mod approx;
mod best;
pub mod bwcache;
mod config;
mod conversation;
pub mod curve;
pub mod dbcache;
pub mod dicache;
pub mod easycache;
pub mod fastercache;
pub mod fbcache;
mod guard;
mod ledger;
pub mod magcache;
pub mod mixcache;
pub mod navicache;
pub mod none;
pub mod pab;
mod path_sum;
mod per_branch;
pub mod precisecache;
pub mod presets;
pub mod promise;
mod quantity;
mod records;
pub mod references;
pub mod schedule;
pub mod seacache;
mod state;
pub mod steering;
mod store;
pub mod stride;
pub mod tafc;
pub mod taylorseer;
pub mod teacache;
pub mod trend;
mod unread;
pub mod walk;
pub mod watch;

use std::ops::Range;

pub use approx::{Anchor, Approx, Form, Kept, Recipe, Reuse};
pub use best::{Best, best};
pub use config::{About, CacheConfig, CacheError, CacheSpec};
pub use conversation::Said;
pub use guard::{Bounds, Guard, Guarded};
pub use quantity::{Measure, Measurements, Quantity, ScopeKind, Subject, When};
pub use records::{Approximated, BranchRecord, StepRecord, WalkError};
pub use state::SessionState;
pub use store::{CacheMemory, Item};

use serde::{Deserialize, Serialize};

use crate::guidance::Branch;
use crate::resume::ResumeError;
use crate::schedule::{Sigma, Step, Timestep};
use crate::solver::SolverKind;
use crate::solver::skipping::Keeps;

/// Refuses numbers outside 0 to 1.
fn check_part(option: &str, value: f64, of: &str) -> Result<(), String> {
    if value <= 1.0 { Ok(()) } else { Err(format!("{option} is {value}, expected a part of the {of}, 0 to 1")) }
}

/// What a policy may know of the run before it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The family of models that presets and tables are looked up by.
    pub family: String,
    /// The steps, noisiest first.
    pub steps: Vec<Step>,
    /// The branches of every step, in the order they run.
    pub branches: Vec<Branch>,
    /// The units of one forward, in the order they run.
    pub units: Vec<Unit>,
    /// Steps at which another network takes over, in order. Such a step is computed, and nothing kept from before it is
    /// reused.
    pub segments: Vec<usize>,
}

impl Run {
    /// A place in the run.
    ///
    /// # Errors
    /// The step is outside of the schedule.
    pub fn at(&self, step: usize, scope: Scope) -> Result<At, WalkError> {
        let steps = self.steps.len();
        let Step { timestep, sigma } = *self.steps.get(step).ok_or(WalkError::OutsideSchedule { step, steps })?;
        Ok(At { step, timestep, sigma, scope })
    }

    /// A place that a saved state speaks of.
    fn place(&self, step: usize, scope: Scope) -> Result<At, ResumeError> {
        let steps = self.steps.len();
        let outside = |_| ResumeError::new("steps", format!("step {step}"), format!("{steps} steps"));
        let known = match scope {
            Scope::Step => true,
            Scope::Branch(branch) | Scope::Span { branch, .. } => self.branches.contains(&branch),
        };
        ResumeError::unless(known, "branches", format!("{scope:?}"), format!("{:?}", self.branches))?;
        self.at(step, scope).map_err(outside)
    }

    /// The units of a range of blocks.
    pub fn blocks(&self, blocks: Range<usize>) -> Range<usize> {
        let first = |block: usize| self.units.iter().position(|u| u.block >= block).unwrap_or(self.units.len());
        first(blocks.start)..first(blocks.end)
    }

    /// Number of blocks.
    pub fn block_count(&self) -> usize {
        self.units.last().map_or(0, |unit| unit.block + 1)
    }
}

/// The smallest piece of a transformer that may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Index of the block, from 0.
    pub block: usize,
    /// Which part of it.
    pub part: Part,
}

/// Which part of a block a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The whole block: its parts share a projection and cannot be separated.
    Whole,
    /// Attention among the video's tokens.
    SelfAttn,
    /// Attention within each frame, in models that have it apart from that across frames.
    SpatialAttn,
    /// Attention across frames, of every place by itself.
    TemporalAttn,
    /// Attention to the text.
    CrossAttn,
    /// The feed-forward network.
    Mlp,
}

impl Part {
    /// Whether it is attention among the video's tokens, all of them or some.
    pub fn is_self_attention(self) -> bool {
        matches!(self, Part::SelfAttn | Part::SpatialAttn | Part::TemporalAttn)
    }
}

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All branches of a step.
    Step,
    /// One branch of it.
    Branch(Branch),
    /// A span of units of one branch, by its index in [`Spans::cut`].
    Span {
        /// The branch.
        branch: Branch,
        /// Index of the span.
        span: usize,
    },
}

/// Where and when a question stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct At {
    /// Index of the step, 0 is the noisiest.
    pub step: usize,
    /// The timestep that the model is conditioned on.
    pub timestep: Timestep,
    /// Its noise level.
    pub sigma: Sigma,
    /// What is asked about.
    pub scope: Scope,
}

/// What a policy wants measured and kept. Nothing else is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asks {
    /// About every step, before anything of it runs. It observes the first branch.
    pub step: Option<Question>,
    /// About every branch of a step that is not reused as a whole.
    pub branch: Option<Question>,
    /// About spans of units of a branch that is not reused as a whole.
    pub spans: Option<Spans>,
}

/// One question: what to measure before and after, and how values may be approximated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Question {
    /// Before it is decided.
    pub to_decide: Vec<Quantity>,
    /// After it was computed.
    pub to_learn: Vec<Quantity>,
    /// What a decision may name; what it needs is kept. The numbers inside do not matter.
    pub to_reuse: Vec<Approx>,
}

/// A cut of the units, and the question about each piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// In order, without overlap. Units in no span are always computed.
    pub cut: Vec<Span>,
    /// Asked of each of them.
    pub question: Question,
}

/// A run of units that are decided on together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which units.
    pub units: Range<usize>,
    /// The unit before which its residual begins, at most the first of `units`: a probe may run before the decision,
    /// and the value that is approximated stands for the probe too.
    pub since: usize,
    /// Whether it may be reused; if not, nothing of it is kept.
    pub reusable: bool,
    /// Whether `to_learn` is measured after it was computed.
    pub watched: bool,
}

impl Span {
    /// A span that may be reused, with its residual over itself.
    pub fn of(units: Range<usize>) -> Self {
        Span { since: units.start, units, reusable: true, watched: false }
    }

    /// A span that is always computed, and measured.
    pub fn probe(units: Range<usize>) -> Self {
        Span { since: units.start, units, reusable: false, watched: true }
    }

    /// The same, measured when it was computed.
    pub fn watched(self) -> Self {
        Span { watched: true, ..self }
    }
}

impl Asks {
    /// The question of a scope.
    pub fn question(&self, scope: Scope) -> Option<&Question> {
        match scope {
            Scope::Step => self.step.as_ref(),
            Scope::Branch(_) => self.branch.as_ref(),
            Scope::Span { .. } => self.spans.as_ref().map(|spans| &spans.question),
        }
    }

    /// Whether a step teaches anything about a subject.
    pub fn learns(&self, subject: Subject) -> bool {
        self.step.iter().flat_map(|question| &question.to_learn).any(|quantity| quantity.subject == subject)
    }

    /// What the solver keeps for the answers and the lessons.
    pub fn solver_keeps(&self) -> Keeps {
        match (self.may_reuse_steps_by(Approx::Corrected), self.learns(Subject::SolverError)) {
            (true, _) => Keeps::WhatCorrects,
            (false, true) => Keeps::Velocities,
            (false, false) => Keeps::Nothing,
        }
    }

    /// Refuses what a solver is no good at, with the reason.
    pub fn check_solver(&self, solver: SolverKind) -> Result<(), String> {
        if self.may_reuse_steps_by(Approx::StepOver) && !solver.steps_over() {
            return Err(format!(
                "reuse=step_over with the solver {solver}: its own error grows with the length of its steps, so that jumping \
                 loses what it saves. reuse=corrected works with every solver that adds no noise"
            ));
        }
        if self.may_reuse_steps_by(Approx::Corrected) && solver.adds_noise() {
            return Err(format!(
                "reuse=corrected with the solver {solver}: it adds fresh noise in every step, and what the model would have \
                 answered to that is not known once the step has passed. Take reuse=residual or another solver"
            ));
        }
        Ok(())
    }

    /// Whether a whole step may be reused by an approximation.
    pub fn may_reuse_steps_by(&self, approx: Approx) -> bool {
        self.step.iter().flat_map(|question| &question.to_reuse).any(|other| *other == approx)
    }

    /// Refuses a cut that is not one, and subjects that a scope cannot supply, with the reason.
    fn check(&self, run: &Run) -> Result<(), String> {
        let scopes = [
            (ScopeKind::Step, self.step.as_ref()),
            (ScopeKind::Branch, self.branch.as_ref()),
            (ScopeKind::Span, self.spans.as_ref().map(|spans| &spans.question)),
        ];
        for (scope, question) in scopes {
            let Some(Question { to_decide, to_learn, .. }) = question else { continue };
            for (when, quantities) in [(When::Before, to_decide), (When::After, to_learn)] {
                if let Some(quantity) = quantities.iter().find(|q| !q.subject.exists(scope, when)) {
                    let name = quantity.name();
                    return Err(format!(
                        "{name} cannot be measured {when} a {scope} is computed: it is not known there"
                    ));
                }
            }
        }
        let mut end = 0;
        for Span { units, since, .. } in self.spans.iter().flat_map(|spans| &spans.cut) {
            if units.start < end || units.end < units.start || units.end > run.units.len() || *since > units.start {
                let all = run.units.len();
                return Err(format!(
                    "span {units:?} since {since} after {end}: expected spans in order within {all} units"
                ));
            }
            end = units.end;
        }
        Ok(())
    }

    /// One question about the whole stack of units.
    pub fn stack(run: &Run, question: Question) -> Self {
        let cut = vec![Span { watched: !question.to_learn.is_empty(), ..Span::of(0..run.units.len()) }];
        Asks { spans: Some(Spans { cut, question }), ..Asks::default() }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Run it, or go on to the questions inside.
    Compute,
    /// Make it up.
    Reuse(Approx),
}

/// A method as configured.
pub trait Method {
    /// Lower-case name, as given to `--cache`.
    fn name(&self) -> &str;
    /// The rules common to all methods, with this method's numbers, for a run of so many steps.
    fn guard(&self, steps: usize) -> Guard;
    /// The running state for one generation, not yet guarded.
    fn policy(&self, run: &Run) -> Box<dyn Policy>;
    /// Every option with its value, for the report.
    fn options(&self) -> serde_json::Value;

    /// Whether it ever reuses anything.
    fn caches(&self) -> bool {
        true
    }

    /// Refuses options that make no sense, with the reason.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Refuses a run that it does not fit, with the reason.
    fn check_run(&self, run: &Run) -> Result<(), String> {
        let _ = run;
        Ok(())
    }

    /// The guarded policy for one generation.
    fn start(&self, run: &Run) -> Guarded {
        self.guard(run.steps.len()).around(self.policy(run), run)
    }

    /// The same, if the method fits the run; else the reason why not.
    fn try_start(&self, run: &Run) -> Result<Guarded, String> {
        self.check_run(run)?;
        let policy = self.start(run);
        policy.asks().check(run)?;
        let of_steps = policy.asks().step.iter().flat_map(|question| &question.to_reuse);
        let from_cond = of_steps.into_iter().any(|approx| matches!(approx, Approx::FromCond { .. }));
        if from_cond && run.branches.len() < 2 {
            return Err("reuse=from_cond needs guidance: this run has one branch".to_string());
        }
        Ok(policy)
    }
}

/// The running state of a method, for one generation.
pub trait Policy: Send {
    /// What it wants to see.
    fn asks(&self) -> Asks;
    /// Whether to compute. Called in order, where it has a question.
    fn decide(&mut self, at: At, measured: &Measurements) -> Decision;
    /// Decides by this threshold from now on: 0 computes, infinity reuses whatever can be. Whether it has a threshold
    /// that can be turned like this; methods whose other numbers decide as well have none.
    fn dial(&mut self, threshold: f64) -> bool {
        let _ = threshold;
        false
    }
    /// By how much it reckons that a reused value would miss by now, over the value: what the guards measure. Asked
    /// before it learns what was computed. `None` where it reckons with something else.
    fn expected_miss(&self) -> Option<f64> {
        None
    }
    /// What it has a question about was computed, by its own wish or the guard's; learn from it.
    fn computed(&mut self, at: At, measured: &Measurements) {
        let _ = (at, measured);
    }
}

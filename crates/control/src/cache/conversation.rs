//! Everything that is said to a policy, so that it can be said again.
//!
//! A policy follows from the numbers that it was given, and from nothing else. So what it remembers need not be written
//! down, whatever that is made of: a new one of the same method that is told the same is where the old one was. It is
//! asked again on the way, and must decide again as it did.

use serde::{Deserialize, Serialize};

use super::watch::Alarm;
use super::{At, Decision, Guarded, Measurements, Quantity, Run, Scope};
use crate::resume::ResumeError;

/// One thing that was said to a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Said {
    /// It was asked, and decided.
    Asked {
        /// The step.
        step: usize,
        /// What it was asked about.
        scope: Scope,
        /// What was measured for it.
        #[serde(with = "crate::exact::list")]
        measured: Vec<(Quantity, f64)>,
        /// Its answer.
        decision: Decision,
    },
    /// It was not asked: this was computed in any case.
    Forced {
        /// The step.
        step: usize,
        /// What was computed.
        scope: Scope,
    },
    /// It was told what a computation taught.
    Taught {
        /// The step.
        step: usize,
        /// What was computed.
        scope: Scope,
        /// What was measured of it.
        #[serde(with = "crate::exact::list")]
        measured: Vec<(Quantity, f64)>,
    },
    /// It was told how many steps are to be computed.
    Budgeted {
        /// The step that it holds from.
        from: usize,
        /// Steps, in equivalents of whole ones.
        #[serde(with = "crate::exact")]
        budget: f64,
    },
    /// Another network took over.
    Forgot,
}

/// A policy, and what was said to it. It can be looked at as itself; what changes it goes through here.
pub(super) struct Conversation {
    policy: Guarded,
    said: Vec<Said>,
}

impl std::ops::Deref for Conversation {
    type Target = Guarded;

    fn deref(&self) -> &Guarded {
        &self.policy
    }
}

impl Conversation {
    /// Nothing was said yet.
    pub fn new(policy: Guarded) -> Self {
        Conversation { policy, said: Vec::new() }
    }

    /// Says it again to a policy that was started for the same run and has heard nothing yet.
    pub fn again(&mut self, run: &Run, said: Vec<Said>) -> Result<(), ResumeError> {
        self.said.reserve(said.len());
        said.into_iter().try_for_each(|one| self.say(one, run))
    }

    /// Everything that was said to it, in order.
    pub fn said(&self) -> &[Said] {
        &self.said
    }

    /// See [`Guarded::decide`].
    pub fn decide(&mut self, at: At, measurements: &Measurements) -> Decision {
        let decision = self.policy.decide(at, measurements);
        let measured = measurements.iter().collect();
        self.said.push(Said::Asked { step: at.step, scope: at.scope, measured, decision });
        decision
    }

    /// See [`Guarded::force`].
    pub fn force(&mut self, at: At) -> Decision {
        self.said.push(Said::Forced { step: at.step, scope: at.scope });
        self.policy.force(at)
    }

    /// See [`Guarded::computed`].
    pub fn computed(&mut self, at: At, measurements: &Measurements) {
        let measured = measurements.iter().collect();
        self.said.push(Said::Taught { step: at.step, scope: at.scope, measured });
        self.policy.computed(at, measurements);
    }

    /// See [`Guarded::forget`].
    pub fn forget(&mut self) {
        self.said.push(Said::Forgot);
        self.policy.forget();
    }

    /// See [`Guarded::begin_segment`]. It is a fact of the run, which who goes on knows from the beginning.
    pub fn begin_segment(&mut self, step: usize) {
        self.policy.begin_segment(step);
    }

    /// See [`Guarded::budget`].
    pub fn budget(&mut self, from: usize, budget: f64) {
        self.said.push(Said::Budgeted { from, budget });
        self.policy.budget(from, budget);
    }

    /// See [`Guarded::take_alarms`]. They follow from what was said.
    pub fn take_alarms(&mut self) -> Vec<Alarm> {
        self.policy.take_alarms()
    }

    /// Says one thing again.
    fn say(&mut self, said: Said, run: &Run) -> Result<(), ResumeError> {
        match said {
            Said::Asked { step, scope, measured, decision } => {
                let now = self.decide(self.at(run, step, scope)?, &measured.into_iter().collect());
                let what = format!("the decision about {scope:?} of step {step}");
                ResumeError::unless(now == decision, &what, format!("{decision:?}"), format!("{now:?}"))?;
            }
            Said::Forced { step, scope } => drop(self.force(self.at(run, step, scope)?)),
            Said::Taught { step, scope, measured } => {
                self.computed(self.at(run, step, scope)?, &measured.into_iter().collect());
            }
            Said::Budgeted { from, budget } => self.budget(from, budget),
            Said::Forgot => self.forget(),
        }
        Ok(())
    }

    /// A place that the run and the policy's cut have.
    fn at(&self, run: &Run, step: usize, scope: Scope) -> Result<At, ResumeError> {
        let spans = self.policy.asks().spans.as_ref().map_or(0, |spans| spans.cut.len());
        let inside = !matches!(scope, Scope::Span { span, .. } if span >= spans);
        ResumeError::unless(inside, "what was decided about", format!("{scope:?}"), format!("{spans} spans"))?;
        run.place(step, scope)
    }
}

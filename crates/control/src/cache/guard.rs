//! The rules common to all methods, applied before a policy is asked.

use super::{Asks, At, Decision, Policy, Run, Seen};

/// When a step is computed whatever the policy would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// So many steps at the start are computed.
    pub first_steps: usize,
    /// So many steps at the end are computed.
    pub last_steps: usize,
    /// Longest run of reused steps; `None`: no limit.
    pub max_run: Option<usize>,
}

impl Guard {
    /// Puts the guard around a policy. The result computes
    /// * the first and last steps,
    /// * as long as nothing was computed that could be reused,
    /// * after the longest run of reuse,
    /// * when a measured value is not finite: a broken measurement must not look like a small change.
    pub fn around(self, policy: Box<dyn Policy>, run: &Run) -> Guarded {
        Guarded { guard: self, policy, steps: run.steps, anything_computed: false, reused_in_a_row: 0 }
    }
}

/// A policy inside its guard. See [`Guard::around`].
pub struct Guarded {
    guard: Guard,
    policy: Box<dyn Policy>,
    steps: usize,
    anything_computed: bool,
    reused_in_a_row: usize,
}

impl Guarded {
    fn must_compute(&self, at: At, seen: &Seen) -> bool {
        at.step < self.guard.first_steps
            || at.step + self.guard.last_steps >= self.steps
            || !self.anything_computed
            || self.guard.max_run.is_some_and(|longest| self.reused_in_a_row >= longest)
            || !seen.is_finite()
    }
}

impl Policy for Guarded {
    fn asks(&self) -> Asks {
        self.policy.asks()
    }

    fn decide(&mut self, at: At, seen: &Seen) -> Decision {
        let decision = if self.must_compute(at, seen) { Decision::Compute } else { self.policy.decide(at, seen) };
        if let Decision::Reuse(_) = decision {
            self.reused_in_a_row += 1;
        }
        decision
    }

    fn computed(&mut self, at: At, seen: &Seen) {
        self.anything_computed = true;
        self.reused_in_a_row = 0;
        self.policy.computed(at, seen);
    }
}

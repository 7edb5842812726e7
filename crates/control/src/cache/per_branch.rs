//! Methods whose branches decide for themselves: one policy a branch, none of which knows of the others.

use super::{Asks, At, Decision, Measurements, Policy, Run, Scope};
use crate::guidance::Branch;

/// A policy for every branch.
pub(super) struct PerBranch<P>(Vec<(Branch, P)>);

impl<P: Policy> PerBranch<P> {
    pub fn new(run: &Run, make: impl Fn(Branch) -> P) -> Self {
        PerBranch(run.branches.iter().map(|&branch| (branch, make(branch))).collect())
    }

    fn of(&mut self, scope: Scope) -> Option<&mut P> {
        let (Scope::Branch(branch) | Scope::Span { branch, .. }) = scope else { return None };
        self.0.iter_mut().find(|(b, _)| *b == branch).map(|(_, policy)| policy)
    }
}

impl<P: Policy> Policy for PerBranch<P> {
    fn asks(&self) -> Asks {
        self.0.first().map(|(_, policy)| policy.asks()).unwrap_or_default()
    }

    fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        self.of(at.scope).map_or(Decision::Compute, |policy| policy.decide(at, measured))
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.0.iter_mut().all(|(_, policy)| policy.dial(threshold))
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        if let Some(policy) = self.of(at.scope) {
            policy.computed(at, measured);
        }
    }
}

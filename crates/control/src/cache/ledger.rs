//! What a run has computed so far, in equivalents of steps computed in full, from what the walk says of every scope.

use super::{Approx, Asks, At, Run, Scope};

/// Computed units by step.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    /// Units of a step, of all branches.
    all: f64,
    /// Units of one branch.
    branch: f64,
    /// Units of each span.
    spans: Vec<f64>,
    /// Of a branch, units that no span holds.
    outside: f64,
    /// The share of a step that runs whatever is reused.
    fixed: f64,
    /// Share that each step computed.
    steps: Vec<f64>,
}

impl Ledger {
    /// Of a run under a policy that asks these questions.
    pub fn new(asks: &Asks, run: &Run) -> Ledger {
        let branch = run.units.len() as f64;
        let cut = asks.spans.as_ref().map(|spans| spans.cut.as_slice()).unwrap_or_default();
        let spans: Vec<f64> = cut.iter().map(|span| span.units.len() as f64).collect();
        let reusable: f64 = cut.iter().filter(|span| span.reusable).map(|span| span.units.len() as f64).sum();
        let all = branch * run.branches.len() as f64;
        let fixed = match &asks.step {
            Some(step) if step.to_reuse.iter().any(|approx| !matches!(approx, Approx::FromCond { .. })) => 0.0,
            Some(step) if !step.to_reuse.is_empty() => 1.0 / run.branches.len().max(1) as f64,
            _ if cut.is_empty() => 1.0,
            _ => 1.0 - reusable / branch.max(1.0),
        };
        let outside = branch - spans.iter().sum::<f64>();
        Ledger { all: all.max(1.0), branch, spans, outside, fixed, steps: vec![0.0; run.steps.len()] }
    }

    /// Something was computed.
    pub fn computed(&mut self, at: At) {
        let units = match at.scope {
            Scope::Step => 0.0,
            Scope::Branch(_) if self.spans.is_empty() => self.branch,
            Scope::Branch(_) => self.outside,
            Scope::Span { span, .. } => self.spans.get(span).copied().unwrap_or(0.0),
        };
        self.add(at.step, units);
    }

    /// Something is reused; one branch of it may be computed for that.
    pub fn reused(&mut self, at: At, approx: Approx) {
        if let (Scope::Step, Approx::FromCond { .. }) = (at.scope, approx) {
            self.add(at.step, self.branch);
        }
    }

    fn add(&mut self, step: usize, units: f64) {
        if let Some(share) = self.steps.get_mut(step) {
            *share += units / self.all;
        }
    }

    /// The share of a step that runs whatever is reused.
    pub fn fixed(&self) -> f64 {
        self.fixed
    }

    /// Of the steps before one: what was computed beyond the fixed share, in steps computed in full.
    pub fn chosen_before(&self, step: usize) -> f64 {
        let free = (1.0 - self.fixed).max(f64::EPSILON);
        self.steps.iter().take(step).map(|share| ((share - self.fixed) / free).max(0.0)).sum()
    }

    /// Steps before one that left something out.
    pub fn reduced_before(&self, step: usize) -> usize {
        (0..step).filter(|&before| self.is_reduced(before)).count()
    }

    /// Whether a step left anything out that could be.
    pub fn is_reduced(&self, step: usize) -> bool {
        self.steps.get(step).is_some_and(|&share| share < 1.0 - 1e-9)
    }
}

//! The rules common to all methods, applied around a policy.

use std::collections::HashMap;

use super::approx::{Anchor, Kept, Recipe};
use super::{Approx, Asks, At, Decision, Measurements, Policy, Run, Scope};
use crate::guidance::Branch;

/// When everything is computed whatever the policy would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// So many steps at the start are computed.
    pub first_steps: usize,
    /// So many steps at the end are computed.
    pub last_steps: usize,
    /// Longest run of reuse, of a step, a branch or a span; `None`: no limit.
    pub max_run: Option<usize>,
}

impl Guard {
    /// No rules.
    pub const NONE: Guard = Guard { first_steps: 0, last_steps: 0, max_run: None };

    /// Puts the guard around a policy. The result computes
    /// * the first and last steps,
    /// * what was not computed yet in this generation, and so cannot be reused,
    /// * after the longest run of reuse,
    /// * when a measured value is not finite: a broken measurement must not look like a small change.
    pub fn around(self, policy: Box<dyn Policy>, run: &Run) -> Guarded {
        let asks = policy.asks();
        Guarded {
            guard: self,
            policy,
            asks,
            run: run.clone(),
            anchors: HashMap::new(),
            runs: HashMap::new(),
            broken: false,
        }
    }
}

/// Anchors remembered of every place: as many as the highest order needs.
const ANCHORS: usize = 3;

/// Where something is kept of a branch, whatever its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Prediction,
    CfgDifference,
    Span(usize),
}

/// A policy inside its guard. See [`Guard::around`].
pub struct Guarded {
    guard: Guard,
    policy: Box<dyn Policy>,
    asks: Asks,
    run: Run,
    anchors: HashMap<(Branch, Place), Vec<Anchor>>,
    runs: HashMap<Scope, usize>,
    broken: bool,
}

impl Guarded {
    /// What the policy asks for.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Whether it is computed whatever the policy would say, so that nothing need be measured for the answer.
    pub fn is_forced(&self, at: At) -> bool {
        let run = self.runs.get(&at.scope).copied().unwrap_or_default();
        at.step < self.guard.first_steps
            || at.step + self.guard.last_steps >= self.run.steps.len()
            || self.run.segments.contains(&at.step)
            || self.guard.max_run.is_some_and(|longest| run >= longest)
            || self.asks.question(at.scope).is_none()
    }

    /// It is computed without asking the policy.
    pub fn force(&mut self, at: At) -> Decision {
        self.runs.insert(at.scope, 0);
        Decision::Compute
    }

    /// Another network takes over: nothing that was computed before can be reused.
    pub fn forget(&mut self) {
        self.anchors.clear();
        self.runs.clear();
    }

    /// Whether to compute. What is asked of a scope that the policy has no question for is computed.
    pub fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        let at_rest = self.is_forced(at) || self.broken || !measured.is_finite();
        let decision = if at_rest { Decision::Compute } else { self.policy.decide(at, measured) };
        let possible = match decision {
            Decision::Compute => false,
            Decision::Reuse(approx) => self.possible(at.scope, approx),
        };
        let run = self.runs.entry(at.scope).or_default();
        if possible {
            *run += 1;
            decision
        } else {
            *run = 0;
            Decision::Compute
        }
    }

    /// Something was computed, by the policy's wish or the guard's; the policy learns from it, unless it is no number.
    pub fn computed(&mut self, at: At, measured: &Measurements) {
        let anchor = Anchor { step: at.step, timestep: at.timestep, sigma: at.sigma };
        match at.scope {
            Scope::Step => {}
            Scope::Branch(branch) => {
                self.keep(branch, Place::Prediction, anchor);
                let newest = |b: Branch| self.anchors.get(&(b, Place::Prediction)).and_then(|a| a.first());
                let computed = |b: Branch| newest(b).is_some_and(|a| a.step == at.step);
                if branch == Branch::Uncond && computed(Branch::Cond) {
                    self.keep(branch, Place::CfgDifference, anchor);
                }
            }
            Scope::Span { branch, span } => self.keep(branch, Place::Span(span), anchor),
        }
        if self.asks.question(at.scope).is_some() {
            self.broken = !measured.is_finite();
            if !self.broken {
                self.policy.computed(at, measured);
            }
        }
    }

    /// The numbers with which a branch's value is approximated; `None` where the solver skips the step and nothing is.
    pub fn recipe(&self, branch: Branch, at: At, approx: Approx) -> Option<Recipe> {
        let kept = approx.kept(at.scope)?;
        let weights = approx.weights(self.anchors(branch, at.scope, approx), at);
        let split = match approx {
            Approx::FromCond { low, high } if (low, high) != (1.0, 1.0) => Some((low, high)),
            _ => None,
        };
        Some(Recipe { branch, kept, weights, split })
    }

    fn keep(&mut self, branch: Branch, place: Place, anchor: Anchor) {
        let anchors = self.anchors.entry((branch, place)).or_default();
        anchors.insert(0, anchor);
        anchors.truncate(ANCHORS);
    }

    /// The computed steps that a branch's value can be approximated from, newest first.
    pub fn anchors(&self, branch: Branch, scope: Scope, approx: Approx) -> &[Anchor] {
        let place = match approx.kept(scope) {
            Some(Kept::Prediction(_)) | None => Place::Prediction,
            Some(Kept::CfgDifference) => Place::CfgDifference,
            Some(Kept::Span(span, _)) => Place::Span(span),
        };
        self.anchors.get(&(branch, place)).map_or(&[], Vec::as_slice)
    }

    /// Whether everything was kept that the value is made of.
    fn possible(&self, scope: Scope, approx: Approx) -> bool {
        let kept = |branch: Branch| !self.anchors(branch, scope, approx).is_empty();
        match approx {
            Approx::FromCond { .. } => kept(Branch::Uncond),
            _ => self.branches(scope).all(kept),
        }
    }

    /// The branches that a scope is about.
    fn branches(&self, scope: Scope) -> impl Iterator<Item = Branch> + '_ {
        let one = match scope {
            Scope::Step => None,
            Scope::Branch(branch) | Scope::Span { branch, .. } => Some(branch),
        };
        self.run.branches.iter().copied().filter(move |&b| one.is_none_or(|one| one == b))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Method, Question, Span, Spans};
    use super::*;

    /// Always reuses, whatever it asks.
    #[derive(Clone)]
    struct Greedy(Asks);

    impl Method for Greedy {
        fn name(&self) -> &str {
            "greedy"
        }

        fn guard(&self, _: usize) -> Guard {
            Guard::NONE
        }

        fn policy(&self, _: &Run) -> Box<dyn Policy> {
            Box::new(self.clone())
        }

        fn options(&self) -> serde_json::Value {
            serde_json::json!({})
        }
    }

    impl Policy for Greedy {
        fn asks(&self) -> Asks {
            self.0.clone()
        }

        fn decide(&mut self, _: At, _: &Measurements) -> Decision {
            Decision::Reuse(Approx::Residual)
        }
    }

    fn run() -> Run {
        let steps = crate::schedule::flow_euler(4, 1.0, 1000).unwrap().steps;
        let unit = |block| super::super::Unit { block, part: super::super::Part::Whole };
        let units = (0..4).map(unit).collect();
        Run { family: String::new(), steps, branches: vec![Branch::Cond, Branch::Uncond], units, segments: vec![] }
    }

    fn greedy(cut: Vec<Span>) -> Greedy {
        let question = Question { to_reuse: vec![Approx::Residual], ..Question::default() };
        Greedy(Asks { step: Some(question.clone()), branch: None, spans: Some(Spans { cut, question }) })
    }

    #[test]
    fn what_was_not_computed_is_not_reused() {
        let run = run();
        let mut policy = greedy(vec![Span::of(0..4)]).try_start(&run).unwrap();
        let decide = |policy: &mut Guarded, scope| policy.decide(run.at(1, scope).unwrap(), &Measurements::default());
        let span = |branch| Scope::Span { branch, span: 0 };
        assert_eq!(decide(&mut policy, Scope::Step), Decision::Compute);
        policy.computed(run.at(0, span(Branch::Cond)).unwrap(), &Measurements::default());
        policy.computed(run.at(0, Scope::Branch(Branch::Cond)).unwrap(), &Measurements::default());
        // one branch is not the step, and its span is not the other's
        assert_eq!(decide(&mut policy, Scope::Step), Decision::Compute);
        assert_eq!(decide(&mut policy, span(Branch::Uncond)), Decision::Compute);
        assert_eq!(decide(&mut policy, span(Branch::Cond)), Decision::Reuse(Approx::Residual));
        policy.computed(run.at(0, Scope::Branch(Branch::Uncond)).unwrap(), &Measurements::default());
        assert_eq!(decide(&mut policy, Scope::Step), Decision::Reuse(Approx::Residual));
        // without a question there is nothing to reuse
        assert_eq!(decide(&mut policy, Scope::Branch(Branch::Cond)), Decision::Compute);
    }

    #[test]
    fn a_cut_that_is_none_is_refused() {
        for cut in
            [vec![Span::of(0..5)], vec![Span::of(2..3), Span::of(1..2)], vec![Span { since: 2, ..Span::of(1..3) }]]
        {
            let refused = greedy(cut).try_start(&run()).map(|_| ()).unwrap_err();
            assert!(refused.contains("in order within 4 units"), "{refused}");
        }
    }
}

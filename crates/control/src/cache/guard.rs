//! The rules common to all methods, applied around a policy.

use std::collections::HashMap;

use super::approx::{Anchor, Kept, Recipe};
use super::curve;
use super::ledger::Ledger;
use super::steering::{self, Steering};
use super::watch::{Action, Alarm, Mode, Watch};
use super::{Approx, Asks, At, Decision, Measurements, Method, Policy, Quantity, Run, Scope};
use crate::guidance::Branch;

/// When everything is computed whatever the policy would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// Number of initial steps that are always computed.
    pub first_steps: usize,
    /// Number of final steps that are always computed.
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
            ledger: Ledger::new(&asks, run),
            own: asks.clone(),
            asks,
            run: run.clone(),
            anchors: HashMap::new(),
            runs: HashMap::new(),
            broken: false,
            threshold: None,
            dialled: None,
            steered: None,
            watch: None,
            alarms: Vec::new(),
            long_run_at: None,
            computes_rest: false,
            moves_threshold: false,
        }
    }
}

/// What a threshold is lowered by.
const LOWERED: f64 = 0.25;

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
    /// What the policy asks for, and the same with what is watched.
    own: Asks,
    asks: Asks,
    run: Run,
    anchors: HashMap<(Branch, Place), Vec<Anchor>>,
    runs: HashMap<Scope, usize>,
    broken: bool,
    ledger: Ledger,
    /// The policy's threshold, where it has one.
    threshold: Option<f64>,
    /// The step that the threshold was last set for.
    dialled: Option<usize>,
    steered: Option<(Steering, Bounds)>,
    watch: Option<Watch>,
    /// Raised and not told yet.
    alarms: Vec<Alarm>,
    /// The last step at which a run of reuse was too long.
    long_run_at: Option<usize>,
    /// Whether an alarm has ended all reuse.
    computes_rest: bool,
    /// Whether a target or an alarm has moved the threshold.
    moves_threshold: bool,
}

/// The guard of a method, and what of it may give way to a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// As the method has it.
    pub usual: Guard,
    /// Whether its first steps were asked for.
    pub keeps_first: bool,
    /// Whether its longest run was asked for.
    pub keeps_longest: bool,
}

impl Bounds {
    /// The guard of a run of so many steps of which so many are to be computed.
    pub fn guard(&self, steps: usize, budget: f64) -> Guard {
        let Guard { first_steps, last_steps, max_run } = self.usual;
        let longest = || steering::longest_run(max_run.unwrap_or(steps.div_ceil(6)), steps, budget);
        Guard {
            first_steps: match self.keeps_first {
                true => first_steps.max(steering::FIRST_STEPS),
                false => steering::first_steps(first_steps, budget),
            },
            last_steps,
            max_run: if self.keeps_longest { max_run } else { Some(longest()) },
        }
    }
}

impl Guarded {
    /// The same, steered to a budget.
    pub fn steered(mut self, steering: Steering, bounds: Bounds) -> Self {
        self.steered = Some((steering, bounds));
        self
    }

    /// The same with guards at run time, where the method reuses anything. Where guards act, runs of reuse are no
    /// longer than they may be without a look at what they do.
    pub fn watched(mut self, mode: Mode, method: &dyn Method) -> Self {
        if mode == Mode::Off || !method.caches() {
            return self;
        }
        let steps = self.run.steps.len();
        self.threshold = method.options().get("threshold").and_then(|threshold| threshold.as_f64());
        let Run { family, units, .. } = &self.run;
        let watch = Watch::new(mode, &self.own, family, steps, units.len());
        if mode == Mode::Act {
            let longest = watch.longest_run();
            self.guard.max_run = Some(self.guard.max_run.map_or(longest, |own| own.min(longest)));
        }
        self.asks = watch.asks(&self.own);
        self.watch = Some(watch.expecting(self.usual_reuse(method.name())));
        self
    }

    /// How many reused steps are usual before each step at the method's threshold, where that was measured.
    fn usual_reuse(&self, method: &str) -> Vec<f64> {
        let of_family = curve::shipped(method, &self.run.family).filter(|curve| curve.family == self.run.family);
        let (Some(curve), Some(threshold)) = (of_family, self.threshold) else { return Vec::new() };
        let sigmas: Vec<f64> = self.run.steps.iter().map(|step| step.sigma.0).collect();
        let free = self.guard.first_steps..sigmas.len().saturating_sub(self.guard.last_steps);
        if threshold > 0.0 { steering::usual_reuse(&curve, &sigmas, free, threshold) } else { Vec::new() }
    }

    /// So many steps are to be computed, in equivalents of whole ones; said at a step, it holds from there on. Without
    /// a target it means nothing.
    pub fn budget(&mut self, from: usize, budget: f64) {
        if let Some((steering, _)) = &mut self.steered {
            steering.set_budget(from, budget);
        }
    }

    /// The budgets so far, each from a step on.
    pub fn budgets(&self) -> &[(usize, f64)] {
        self.steered.as_ref().map_or(&[], |(steering, _)| steering.budgets())
    }

    /// The share of a step that runs whatever is reused.
    pub fn fixed(&self) -> f64 {
        self.ledger.fixed()
    }

    fn guard_at(&self, step: usize) -> Guard {
        let steered = self.steered.as_ref();
        steered.map_or(self.guard, |(steering, bounds)| bounds.guard(self.run.steps.len(), steering.budget_at(step)))
    }

    /// The threshold that is in force at a step, where it is not the method's own.
    pub fn threshold(&self, step: usize) -> Option<f64> {
        let is_of_step = self.steered.is_none() || self.dialled == Some(step);
        self.threshold.filter(|_| self.moves_threshold && is_of_step)
    }

    /// The alarms since the last call.
    pub fn take_alarms(&mut self) -> Vec<Alarm> {
        std::mem::take(&mut self.alarms)
    }

    /// What the policy asks for.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Whether it is computed whatever the policy would say, so that nothing need be measured for the answer.
    pub fn is_forced(&self, at: At) -> bool {
        let run = self.runs.get(&at.scope).copied().unwrap_or_default();
        let guard = self.guard_at(at.step);
        at.step < guard.first_steps
            || at.step + guard.last_steps >= self.run.steps.len()
            || self.run.segments.contains(&at.step)
            || guard.max_run.is_some_and(|longest| run >= longest)
            || self.computes_rest
            || self.asks.question(at.scope).is_none()
    }

    /// It is computed without asking the policy.
    pub fn force(&mut self, at: At) -> Decision {
        self.look_at_run(at, 0);
        self.runs.insert(at.scope, 0);
        Decision::Compute
    }

    /// Another network takes over at a step that was not begun yet: it is computed.
    pub fn begin_segment(&mut self, step: usize) {
        if !self.run.segments.contains(&step) {
            self.run.segments.push(step);
        }
    }

    /// Another network takes over: nothing that was computed before can be reused.
    pub fn forget(&mut self) {
        self.anchors.clear();
        self.runs.clear();
    }

    /// Whether to compute. What is asked of a scope that the policy has no question for is computed.
    pub fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        self.begin(at.step);
        let at_rest =
            self.is_forced(at) || self.own.question(at.scope).is_none() || self.broken || !measured.is_finite();
        let decision = if at_rest { Decision::Compute } else { self.policy.decide(at, measured) };
        let possible = match decision {
            Decision::Compute => false,
            Decision::Reuse(approx) => self.possible(at.scope, approx),
        };
        let run = self.runs.entry(at.scope).or_default();
        if possible {
            *run += 1;
            self.look_at_run(at, 1);
            if let Decision::Reuse(approx) = decision {
                self.ledger.reused(at, approx);
            }
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
        self.ledger.computed(at);
        if at.scope == Scope::Step {
            self.look_back(at.step, measured);
        }
        if let Some(own) = self.own.question(at.scope) {
            // What is watched beside is no business of the policy's.
            let is_own = |q: &(Quantity, f64)| self.watch.is_none() || own.to_learn.contains(&q.0);
            let measured: Measurements = measured.iter().filter(is_own).collect();
            self.broken = !measured.is_finite();
            if !self.broken {
                self.policy.computed(at, &measured);
            }
        }
    }

    /// Tells of a run of reuse that was only ended by the guards; or, where these only warn, that goes on. Targets have
    /// their own longest run.
    fn look_at_run(&mut self, at: At, beyond: usize) {
        let run = self.runs.get(&at.scope).copied().unwrap_or(0);
        let is_long = self.watch.as_ref().is_some_and(|watch| run >= watch.longest_run() + beyond);
        if is_long && self.steered.is_none() && self.long_run_at != Some(at.step) {
            self.long_run_at = Some(at.step);
            let alarm = self.watch.as_mut().and_then(|watch| watch.long_run(at.step, run));
            self.heed(alarm);
        }
    }

    /// Before the first question of a step: its threshold, and what there is to say of the run so far.
    fn begin(&mut self, step: usize) {
        if self.dialled == Some(step) {
            return;
        }
        self.dialled = Some(step);
        let longest = self.guard_at(step).max_run.unwrap_or(usize::MAX);
        if let Some((steering, _)) = &mut self.steered {
            let threshold = steering.threshold(step, self.ledger.chosen_before(step), longest);
            self.policy.dial(threshold);
            (self.threshold, self.moves_threshold) = (Some(threshold), true);
        }
        let reused = self.ledger.reduced_before(step);
        let alarm = self.watch.as_mut().and_then(|watch| watch.before(step, reused));
        self.heed(alarm);
    }

    /// What a computed step says of the reuse before it.
    fn look_back(&mut self, step: usize, measured: &Measurements) {
        let full = !self.ledger.is_reduced(step);
        let last = (0..step).rev().find(|&before| !self.ledger.is_reduced(before));
        let sigma = |step: usize| self.run.steps[step].sigma.0;
        let across = last.filter(|&last| full && last + 1 < step).map(|last| sigma(last) - sigma(step));
        let expected = self.policy.expected_miss();
        let alarm = self.watch.as_mut().and_then(|watch| watch.after(step, measured, full, across, expected));
        self.heed(alarm);
    }

    /// Does what an alarm demands.
    fn heed(&mut self, alarm: Option<Alarm>) {
        let Some(alarm) = alarm else { return };
        match alarm.action {
            Action::Warned => {}
            Action::ComputesRest => self.computes_rest = true,
            Action::Lowered => self.lower(),
        }
        self.alarms.push(alarm);
    }

    fn lower(&mut self) {
        let lowered = self.threshold.map(|threshold| threshold * LOWERED);
        if let Some((steering, _)) = &mut self.steered {
            steering.scale(LOWERED);
        } else if lowered.is_some_and(|threshold| self.policy.dial(threshold)) {
            (self.threshold, self.moves_threshold) = (lowered, true);
        } else {
            self.guard.max_run = self.guard.max_run.map(|longest| (longest / 2).max(1));
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
    use super::super::{Question, Span, Spans};
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

//! Plays a policy without a model: against numbers, as the engine asks it.

use crate::trace::{ALL_BLOCKS, FIRST_BLOCK, MIDDLE_BLOCK, Trace};
use navicache_control::cache::references::{Place, Refs};
use navicache_control::cache::walk::{Begun, Forward, Session};
use navicache_control::cache::watch::{Alarm, Mode};
use navicache_control::cache::{
    Approx, Approximated, BranchRecord, Form, Guarded, Kept, Measure, Method, Quantity, Run, Scope, Span, Spans,
    StepRecord, Subject, WalkError,
};
use navicache_control::guidance::Branch;
use navicache_control::interpolate::lagrange;
use navicache_control::strip::{Ran, Strip};

/// Where the numbers come from.
pub trait Measures {
    /// A quantity of a scope at a step. `visited` is the step that its subject was looked at before, `computed` are
    /// those at which it was computed in full, newest first. `None` where it has no reference point.
    fn measure(&mut self, place: Place, quantity: Quantity, visited: Option<usize>, computed: &[usize]) -> Option<f64>;
}

/// What a policy did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Played {
    /// Its steps.
    pub steps: Vec<StepRecord>,
}

impl Played {
    /// Everything that was approximated, in order.
    pub fn approximated(&self) -> impl Iterator<Item = &Approximated> {
        self.steps.iter().flat_map(|step| &step.approximated)
    }

    /// Units that a step computed, by branch.
    pub fn units(&self, step: usize) -> Vec<usize> {
        self.steps[step].branches.iter().map(BranchRecord::computed).collect()
    }

    /// Whether a step computed everything.
    pub fn is_full(&self, step: usize) -> bool {
        self.steps[step].branches.iter().all(|branch| branch.ran() == Ran::Computed)
    }

    /// The alarms that guards would have raised, where these only warn.
    pub fn alarms(&self) -> impl Iterator<Item = &Alarm> {
        self.steps.iter().flat_map(|step| &step.alarms)
    }

    /// What ran.
    pub fn strip(&self) -> Strip {
        let mut strip = Strip::default();
        for step in &self.steps {
            strip.push(step.branches.iter().map(BranchRecord::ran).collect());
        }
        strip
    }

    /// Units that were computed, as a part of all.
    pub fn computed_part(&self) -> f64 {
        let branches = || self.steps.iter().flat_map(|step| &step.branches);
        let all: usize = branches().map(|branch| branch.units.len()).sum();
        branches().map(BranchRecord::computed).sum::<usize>() as f64 / all.max(1) as f64
    }
}

/// Plays a whole run.
pub fn play(run: &Run, method: &dyn Method, measures: &mut dyn Measures) -> Result<Played, WalkError> {
    play_policy(run, method.start(run), measures)
}

fn play_policy(run: &Run, policy: Guarded, measures: &mut dyn Measures) -> Result<Played, WalkError> {
    let mut session = Session::new(run.clone(), policy);
    let mut numbers = Numbers { measures };
    for step in 0..run.steps.len() {
        if session.begin_step(step, &mut numbers)? == Begun::Branches {
            for &branch in &run.branches {
                session.branch(branch, &mut numbers)?;
            }
        }
        session.end_step(&mut numbers)?;
    }
    Ok(Played { steps: session.finish(&mut numbers)? })
}

/// The walk over recorded numbers: there are no values, their steps say all.
struct Numbers<'a> {
    measures: &'a mut dyn Measures,
}

impl Forward for Numbers<'_> {
    type Value = ();
    type Scalar = f64;
    type Error = WalkError;

    fn subject(&mut self, _: Place, _: Subject) -> Result<Option<()>, WalkError> {
        Ok(Some(()))
    }

    fn measure(&mut self, place: Place, quantity: Quantity, (): &(), refs: Refs<()>) -> Result<Option<f64>, WalkError> {
        let computed: Vec<usize> = refs.computed.iter().map(|reference| reference.step).collect();
        Ok(self.measures.measure(place, quantity, refs.visited.map(|reference| reference.step), &computed))
    }

    fn read(&mut self, scalars: Vec<f64>) -> Result<Vec<f64>, WalkError> {
        Ok(scalars)
    }

    fn compute(&mut self, _: Branch) -> Result<(), WalkError> {
        Ok(())
    }

    fn begin(&mut self, _: Branch, _: &Spans) -> Result<(), WalkError> {
        Ok(())
    }

    fn run_units(&mut self, _: usize) -> Result<(), WalkError> {
        Ok(())
    }

    fn enter(&mut self, _: &Span) -> Result<(), WalkError> {
        Ok(())
    }

    fn replace(&mut self, _: &Span, _: Form, (): ()) -> Result<(), WalkError> {
        Ok(())
    }

    fn finish(&mut self, _: Branch) -> Result<(), WalkError> {
        Ok(())
    }

    fn kept(&mut self, _: Branch, _: Kept) -> Result<(), WalkError> {
        Ok(())
    }

    fn sum(&mut self, _: &[(f64, &())], _: Option<(f64, f64)>) -> Result<(), WalkError> {
        Ok(())
    }

    fn approximate(&mut self, _: Branch, _: Kept, (): ()) -> Result<(), WalkError> {
        Ok(())
    }
}

/// A method played against a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// What it would have done.
    pub played: Played,
    /// Relative error of the approximated velocities, integrated over the noise level: the sum over steps of
    /// `|sigma_(i+1) - sigma_i| ||approximated - computed|| / ||computed||`, mean over branches. `None` where single
    /// parts of the blocks were reused: what they add up to is not recorded.
    pub error: Option<f64>,
}

/// Plays a method against a trace. Inputs are those of the uncached run, so the error of one reused step does not move
/// the next. Guards look on and change nothing.
pub fn replay(trace: &Trace, method: &dyn Method) -> Result<Replayed, String> {
    let run = trace.run();
    let cut = method.try_start(&run)?.asks().spans.as_ref().map(|spans| spans.cut.clone()).unwrap_or_default();
    let middle = run.blocks(0..run.block_count() / 2).end;
    let mut measures = FromTrace { trace, cut, middle, units: run.units.len(), computed: Vec::new() };
    let policy = method.start(&run).watched(Mode::Warn, method);
    let played = play_policy(&run, policy, &mut measures).map_err(|e| e.to_string())?;
    let mut error = Some(0.0);
    for step in 0..run.steps.len() {
        let after = run.steps.get(step + 1).map_or(0.0, |step| step.sigma.0);
        let weight = (run.steps[step].sigma.0 - after).abs() / run.branches.len() as f64;
        for &branch in &run.branches {
            let miss = measures.miss(&played, step, branch);
            error = error.zip(miss).map(|(sum, miss)| sum + weight * miss);
        }
    }
    Ok(Replayed { played, error })
}

struct FromTrace<'a> {
    trace: &'a Trace,
    /// The policy's own cut.
    cut: Vec<Span>,
    /// Units of the first half of the blocks.
    middle: usize,
    units: usize,
    /// Steps at which the solver was asked for its error, newest first.
    computed: Vec<usize>,
}

impl FromTrace<'_> {
    /// The recorded span that stands for one of the policy's: all blocks, first blocks, or any others.
    fn recorded(&self, span: usize) -> usize {
        let Span { units, since, .. } = &self.cut[span];
        match (*since, units.end) {
            (0, end) if end == self.units => ALL_BLOCKS,
            (0, end) if end <= self.middle => FIRST_BLOCK,
            _ => MIDDLE_BLOCK,
        }
    }

    /// Relative error of a branch's velocity at a step, where the trace tells.
    ///
    /// Where the reused spans reach the last unit, the error is that of the prediction's residual, since the blocks'
    /// residual goes through the head.
    fn miss(&self, played: &Played, step: usize, branch: Branch) -> Option<f64> {
        let about = |one: &&Approximated| match one.scope {
            Scope::Step => !matches!(one.approx, Approx::FromCond { .. }) || branch == Branch::Uncond,
            Scope::Branch(b) | Scope::Span { branch: b, .. } => b == branch,
        };
        let approximated: Vec<&Approximated> = played.steps[step].approximated.iter().filter(about).collect();
        let Some(last) = approximated.last() else { return Some(0.0) };
        let Some(kept) = last.approx.kept(last.scope) else { return self.miss_between(played, last, branch) };
        let subject = match kept {
            Kept::CfgDifference => Subject::CfgDifference,
            Kept::Prediction(Form::Residual) => Subject::Residual,
            Kept::Prediction(Form::Output) => Subject::Output,
            Kept::Span(..) if self.is_rest(&approximated) => Subject::Residual,
            Kept::Span(..) => return None,
        };
        let anchors = &last.anchors[..last.weights.len().min(last.anchors.len())];
        self.trace.relative_miss(step, branch, subject, anchors, &last.weights)
    }

    /// The same of a step that was left to the solver: it integrates what lies on the cubic in sigma through the
    /// computed steps around, three before and one after.
    fn miss_between(&self, played: &Played, skipped: &Approximated, branch: Branch) -> Option<f64> {
        let next = (skipped.step + 1..played.steps.len()).find(|&step| played.is_full(step))?;
        let anchors: Vec<usize> = std::iter::once(next).chain(skipped.anchors.iter().take(3).copied()).collect();
        let sigmas: Vec<f64> = anchors.iter().map(|&step| self.sigma(step)).collect();
        let weights = lagrange(&sigmas, self.sigma(skipped.step));
        self.trace.relative_miss(skipped.step, branch, Subject::Output, &anchors, &weights)
    }

    /// The error that the solver finds at a computed step: what a line through the two before it missed there, as far
    /// as it was followed. See [`navicache_control::solver::skipping`].
    fn solver_error(&mut self, step: usize) -> Option<f64> {
        let before = self.computed.clone();
        self.computed.insert(0, step);
        let [c, b] = *before.first_chunk()?;
        let [now, at_c, at_b] = [step, c, b].map(|s| self.sigma(s));
        let miss = self.trace.velocity_miss(step, &[c, b], &lagrange(&[at_c, at_b], now))?;
        let share = |s: f64| (s - at_b) * (s - at_c) / ((now - at_b) * (now - at_c));
        let followed: f64 = match step - c {
            1 => 0.5 * (at_c - now),
            _ => (c + 1..step).map(|j| (self.sigma(j) - self.sigma(j + 1)) * share(self.sigma(j))).sum(),
        };
        Some(miss * followed.abs())
    }

    fn sigma(&self, step: usize) -> f64 {
        self.trace.steps[step].sigma
    }

    /// Whether spans follow each other without a gap up to the last unit.
    fn is_rest(&self, approximated: &[&Approximated]) -> bool {
        let spans = approximated.iter().filter_map(|m| match m.scope {
            Scope::Span { span, .. } => Some(&self.cut[span].units),
            _ => None,
        });
        let mut end = self.units;
        for units in spans.collect::<Vec<_>>().into_iter().rev() {
            if units.end != end {
                return false;
            }
            end = units.start;
        }
        true
    }
}

impl Measures for FromTrace<'_> {
    fn measure(&mut self, place: Place, quantity: Quantity, visited: Option<usize>, computed: &[usize]) -> Option<f64> {
        if quantity == Subject::SolverError.by(Measure::Magnitude) {
            return self.solver_error(place.at.step);
        }
        // In a run that computes everything the solver's sample is the input.
        let is_sample = quantity.subject == Subject::Sample;
        let quantity = if is_sample { Subject::Input.by(quantity.measure) } else { quantity };
        let span = match (place.at.scope, quantity.subject) {
            (Scope::Step | Scope::Branch(_), _) => None,
            (
                _,
                Subject::TimeEmbedding | Subject::TimeProjection | Subject::ModulatedInput | Subject::FilteredInput,
            ) => Some(FIRST_BLOCK),
            (_, Subject::BlockOutputs) => Some(ALL_BLOCKS),
            (Scope::Span { span, .. }, _) => Some(self.recorded(span)),
        };
        self.trace.value(place.at.step, place.branch, span, quantity, visited, computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Header, LAGS, Stack, TraceStep, VERSION, named};
    use navicache_control::cache::CacheSpec;
    use navicache_control::cache::Part;
    use navicache_control::cache::watch::{Action, Rule};

    /// A trace whose subjects are numbers that follow a function of the step.
    fn trace(steps: usize, f: impl Fn(usize) -> f64) -> Trace {
        let subjects = [
            (Subject::Input, None),
            (Subject::Output, None),
            (Subject::Residual, None),
            (Subject::CfgDifference, None),
            (Subject::SpanResidual, Some(FIRST_BLOCK)),
            (Subject::SpanResidual, Some(ALL_BLOCKS)),
            (Subject::FilteredInput, Some(FIRST_BLOCK)),
        ];
        let step = |i: usize| {
            let mut seen = std::collections::BTreeMap::new();
            for (subject, span) in subjects {
                seen.insert(named(subject.by(Measure::Magnitude), span), f(i).abs());
                seen.insert(named(subject.by(Measure::Norm), span), f(i).abs());
                for lag in 1..=(3 * LAGS).min(i) {
                    let change = (f(i) - f(i - lag)).abs();
                    seen.insert(named(subject.by(Measure::Lag(lag)), span), change);
                    seen.insert(named(subject.by(Measure::LagDistance(lag)), span), change);
                }
            }
            let sigma = 1.0 - i as f64 / steps as f64;
            let seen = [(Branch::Cond, seen.clone()), (Branch::Uncond, seen)].into();
            TraceStep { step: i, timestep: 1000.0 * sigma, sigma, seen }
        };
        let header = Header {
            trace: VERSION,
            model: "x".to_string(),
            family: "wan".to_string(),
            prompt: "x".to_string(),
            seed: 0,
            branches: vec![Branch::Cond, Branch::Uncond],
            stacks: vec![Stack { blocks: 4, parts: vec![Part::SelfAttn, Part::CrossAttn, Part::Mlp] }],
            lags: LAGS,
            segments: Vec::new(),
            made: None,
        };
        Trace { header, steps: (0..steps).map(step).collect() }
    }

    fn replayed(trace: &Trace, cache: &str) -> Replayed {
        let config = cache.parse::<CacheSpec>().unwrap().resolve("wan").unwrap();
        replay(trace, config.method()).unwrap()
    }

    #[test]
    fn the_error_is_that_of_what_was_made_up() {
        // A straight line in sigma: a line makes no error, held values do.
        let trace = trace(40, |i| 1.0 + i as f64 / 40.0);
        let held = replayed(&trace, "easycache,threshold=0.1,warmup_steps=3");
        let line = replayed(&trace, "easycache,threshold=0.1,warmup_steps=3,reuse=linear");
        assert_eq!(held.played.strip(), line.played.strip());
        assert!(held.error.unwrap() > 1e-3 && line.error.unwrap() < 1e-6, "{:?} {:?}", held.error, line.error);
        assert!(held.played.computed_part() < 0.9);
        // The first value held: |f(3) - f(2)| / f(3) at step 3, and so on.
        let first = held.played.approximated().next().unwrap();
        assert_eq!((first.step, first.anchors[0]), (3, 2));
    }

    #[test]
    fn the_difference_of_both_branches_is_found_under_either() {
        let cache = "navicache,threshold=0.5,align_steps=3,reuse=from_cond";
        let under = |kept: Branch| {
            let mut trace = trace(30, |i| 1.0 + 0.02 * i as f64);
            for (branch, seen) in trace.steps.iter_mut().flat_map(|step| &mut step.seen) {
                seen.retain(|name, _| !name.starts_with("gap") || *branch == kept);
            }
            replayed(&trace, cache).error
        };
        let error = under(Branch::Cond);
        assert!(error.is_some_and(|error| error > 0.0), "{error:?}");
        assert_eq!(error, under(Branch::Uncond));
    }

    #[test]
    fn guards_look_on_and_change_nothing() {
        let trace = trace(50, |i| 1.0 + 0.01 * i as f64);
        let wild = replayed(&trace, "easycache,threshold=1000,warmup_steps=2").played;
        let alarms: Vec<(Rule, usize, Action)> = wild.alarms().map(|a| (a.guard, a.step, a.action)).collect();
        assert_eq!(alarms[0], (Rule::LongRun, 15, Action::Warned), "{alarms:?}");
        assert_eq!(wild.strip().count(Ran::Computed), 2 * 3, "the first two and the last step");
        assert_eq!(replayed(&trace, "easycache,threshold=0.01").played.alarms().count(), 0);
    }

    #[test]
    fn methods_of_all_scopes_replay() {
        let trace = trace(50, |i| 1.0 + 0.01 * i as f64);
        for cache in [
            "none",
            "trend",
            "seacache,threshold=0.05",
            "fbcache,threshold=0.05",
            "dicache,threshold=0.05",
            "magcache",
            "taylorseer",
        ] {
            let Replayed { played, error } = replayed(&trace, cache);
            assert!(error.is_some(), "{cache}");
            assert_eq!(played.steps.len(), 50);
        }
        assert_eq!(replayed(&trace, "none").error, Some(0.0));
        assert_eq!(replayed(&trace, "pab").error, None, "single attentions are not recorded");
        let strip = replayed(&trace, "fbcache,threshold=0.05").played.strip();
        assert!(strip.count(Ran::Mixed) > 0, "{strip}");
    }
}

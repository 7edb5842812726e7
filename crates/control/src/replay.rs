//! Plays a policy without a model: against numbers, as the engine asks it.

use std::collections::HashMap;

use crate::cache::{Approx, Decision, Form, Guarded, Kept, Method, Quantity, Run, Scope, Seen, Span, Subject};
use crate::guidance::Branch;
use crate::strip::{Ran, Strip};
use crate::trace::{ALL_BLOCKS, FIRST_BLOCK, MIDDLE_BLOCK, Trace};

/// Where the numbers come from.
pub trait Measures {
    /// A quantity of a scope at a step; `computed` are the earlier steps that were computed in full, newest first. `None` where
    /// it has no reference point.
    fn measure(&mut self, step: usize, scope: Scope, quantity: Quantity, computed: &[usize]) -> Option<f64>;
}

/// What a policy did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Played {
    /// By step and branch: how many units were computed.
    pub units: Vec<Vec<usize>>,
    /// Units of one forward.
    pub units_each: usize,
    /// Everything that was made up.
    pub reused: Vec<MadeUp>,
}

/// Something that was made up.
#[derive(Debug, Clone, PartialEq)]
pub struct MadeUp {
    /// The step.
    pub step: usize,
    /// What of it.
    pub scope: Scope,
    /// How.
    pub approx: Approx,
    /// Weights of what was kept of the branch that the scope is about (of a step, the first), newest first.
    pub weights: Vec<f64>,
    /// The steps it was kept at.
    pub anchors: Vec<usize>,
}

impl Played {
    /// Whether a step computed everything.
    pub fn is_full(&self, step: usize) -> bool {
        self.units[step].iter().all(|&units| units == self.units_each)
    }

    /// What ran.
    pub fn strip(&self) -> Strip {
        let ran = |&units: &usize| match units {
            0 => Ran::Reused,
            all if all == self.units_each => Ran::Computed,
            _ => Ran::Mixed,
        };
        let mut strip = Strip::default();
        for step in &self.units {
            strip.push(step.iter().map(ran).collect());
        }
        strip
    }

    /// Units that were computed, as a part of all.
    pub fn computed_part(&self) -> f64 {
        let all = self.units.iter().flatten().count() * self.units_each;
        self.units.iter().flatten().sum::<usize>() as f64 / all.max(1) as f64
    }
}

/// Plays a whole run.
pub fn play(run: &Run, method: &dyn Method, measures: &mut dyn Measures) -> Played {
    let played = Played { units_each: run.units.len(), ..Played::default() };
    let mut player = Player { policy: method.start(run), run, measures, full: HashMap::new(), played };
    for step in 0..run.steps.len() {
        player.step(step);
    }
    player.played
}

struct Player<'a> {
    policy: Guarded,
    run: &'a Run,
    measures: &'a mut dyn Measures,
    /// Steps that each branch computed in full, newest first.
    full: HashMap<Branch, Vec<usize>>,
    played: Played,
}

impl Player<'_> {
    fn step(&mut self, step: usize) {
        let all = self.run.units.len();
        let mut units = vec![0; self.run.branches.len()];
        match self.ask(step, Scope::Step) {
            Decision::Reuse(Approx::FromCond { .. }) => units[0] = all,
            Decision::Reuse(_) => {}
            Decision::Compute => {
                for (i, branch) in self.run.branches.clone().into_iter().enumerate() {
                    units[i] = self.branch(step, branch);
                }
                self.learn(step, Scope::Step);
                for (branch, _) in self.run.branches.iter().zip(&units).filter(|(_, units)| **units == all) {
                    self.full.entry(*branch).or_default().insert(0, step);
                }
            }
        }
        self.played.units.push(units);
    }

    fn branch(&mut self, step: usize, branch: Branch) -> usize {
        if self.ask(step, Scope::Branch(branch)) != Decision::Compute {
            return 0;
        }
        let mut units = self.run.units.len();
        let cut = self.policy.asks().spans.as_ref().map(|spans| spans.cut.clone()).unwrap_or_default();
        for (index, Span { units: of_span, reusable, watched, .. }) in cut.into_iter().enumerate() {
            let scope = Scope::Span { branch, span: index };
            let decision = if reusable { self.ask(step, scope) } else { Decision::Compute };
            match decision {
                Decision::Reuse(_) => units -= of_span.len(),
                Decision::Compute => {
                    if watched {
                        self.learn(step, scope);
                    } else {
                        self.policy.computed(self.run.at(step, scope), &Seen::default());
                    }
                }
            }
        }
        if units > 0 {
            self.learn(step, Scope::Branch(branch));
        }
        units
    }

    fn ask(&mut self, step: usize, scope: Scope) -> Decision {
        let Some(question) = self.policy.asks().question(scope).cloned() else { return Decision::Compute };
        let seen = self.see(step, scope, &question.to_decide);
        let at = self.run.at(step, scope);
        let decision = self.policy.decide(at, &seen);
        if let Decision::Reuse(approx) = decision {
            let branch = match approx {
                Approx::FromCond { .. } => Branch::Uncond,
                _ => observed(self.run, scope),
            };
            let weights = self.policy.recipe(branch, at, approx).weights;
            let anchors = self.policy.anchors(branch, scope, approx).iter().map(|anchor| anchor.step).collect();
            self.played.reused.push(MadeUp { step, scope, approx, weights, anchors });
        }
        decision
    }

    fn learn(&mut self, step: usize, scope: Scope) {
        let to_learn = self.policy.asks().question(scope).map(|q| q.to_learn.clone()).unwrap_or_default();
        let seen = self.see(step, scope, &to_learn);
        self.policy.computed(self.run.at(step, scope), &seen);
    }

    fn see(&mut self, step: usize, scope: Scope, quantities: &[Quantity]) -> Seen {
        let computed = self.full.get(&observed(self.run, scope)).cloned().unwrap_or_default();
        let measured = |&q: &Quantity| Some((q, self.measures.measure(step, scope, q, &computed)?));
        quantities.iter().filter_map(measured).collect()
    }
}

/// The branch that a scope's quantities are of.
fn observed(run: &Run, scope: Scope) -> Branch {
    match scope {
        Scope::Step => run.branches.first().copied().unwrap_or(Branch::Cond),
        Scope::Branch(branch) | Scope::Span { branch, .. } => branch,
    }
}

/// A method played against a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// What it would have done.
    pub played: Played,
    /// Relative error of the made-up velocities, integrated over the noise level: the sum over steps of `|sigma_(i+1) - sigma_i|
    /// ||made up - computed|| / ||computed||`, mean over branches. `None` where single parts of the blocks were reused: what they
    /// add up to is not recorded.
    pub error: Option<f64>,
}

/// Plays a method against a trace. Inputs are those of the uncached run, so the error of one reused step does not move the next.
pub fn replay(trace: &Trace, method: &dyn Method) -> Result<Replayed, String> {
    let run = trace.run();
    let cut = method.try_start(&run)?.asks().spans.as_ref().map(|spans| spans.cut.clone()).unwrap_or_default();
    let middle = run.blocks(0..run.block_count() / 2).end;
    let mut measures = FromTrace { trace, cut, middle, units: run.units.len() };
    let played = play(&run, method, &mut measures);
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
    /// Whatever is left out, up to the last unit, the prediction's residual stands for: that of the blocks goes through the head.
    fn miss(&self, played: &Played, step: usize, branch: Branch) -> Option<f64> {
        let about = |made_up: &&MadeUp| match made_up.scope {
            Scope::Step => !matches!(made_up.approx, Approx::FromCond { .. }) || branch == Branch::Uncond,
            Scope::Branch(b) | Scope::Span { branch: b, .. } => b == branch,
        };
        let made_up: Vec<&MadeUp> = played.reused.iter().filter(|m| m.step == step).filter(about).collect();
        let Some(last) = made_up.last() else { return Some(0.0) };
        let subject = match last.approx.kept(last.scope) {
            Kept::Gap => Subject::Gap,
            Kept::Prediction(Form::Residual) => Subject::Residual,
            Kept::Prediction(Form::Output) => Subject::Output,
            Kept::Span(..) if self.is_rest(&made_up) => Subject::Residual,
            Kept::Span(..) => return None,
        };
        let anchors = &last.anchors[..last.weights.len().min(last.anchors.len())];
        self.trace.relative_miss(step, branch, subject, anchors, &last.weights)
    }

    /// Whether spans follow each other without a gap up to the last unit.
    fn is_rest(&self, made_up: &[&MadeUp]) -> bool {
        let spans = made_up.iter().filter_map(|m| match m.scope {
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
    fn measure(&mut self, step: usize, scope: Scope, quantity: Quantity, computed: &[usize]) -> Option<f64> {
        let first = self.trace.header.branches.first().copied().unwrap_or(Branch::Cond);
        let (branch, span) = match (scope, quantity.subject) {
            (_, Subject::Gap) => (Branch::Uncond, None),
            (Scope::Step, _) => (first, None),
            (Scope::Branch(branch), _) => (branch, None),
            (
                Scope::Span { branch, .. },
                Subject::TimeEmbedding | Subject::TimeProjection | Subject::ModulatedInput | Subject::FilteredInput,
            ) => (branch, Some(FIRST_BLOCK)),
            (Scope::Span { branch, .. }, Subject::BlockOutputs) => (branch, Some(ALL_BLOCKS)),
            (Scope::Span { branch, span }, _) => (branch, Some(self.recorded(span))),
        };
        self.trace.value(step, branch, span, quantity, computed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheSpec;
    use crate::cache::{Measure, Part};
    use crate::trace::{Header, LAGS, Stack, TraceStep, VERSION, named};

    /// A trace whose subjects are numbers that follow a function of the step.
    fn trace(steps: usize, f: impl Fn(usize) -> f64) -> Trace {
        let subjects = [
            (Subject::Input, None),
            (Subject::Output, None),
            (Subject::Residual, None),
            (Subject::Gap, None),
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
        let first = &held.played.reused[0];
        assert_eq!((first.step, first.anchors[0]), (3, 2));
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
            assert_eq!(played.units.len(), 50);
        }
        assert_eq!(replayed(&trace, "none").error, Some(0.0));
        assert_eq!(replayed(&trace, "pab").error, None, "single attentions are not recorded");
        let strip = replayed(&trace, "fbcache,threshold=0.05").played.strip();
        assert!(strip.count(Ran::Mixed) > 0, "{strip}");
    }
}

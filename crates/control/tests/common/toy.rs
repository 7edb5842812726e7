//! A generation of plain numbers: a made-up model under the walk, and a solver that adds up.

use navicache_control::cache::references::{Place, Refs};
use navicache_control::cache::walk::{Begun, Forward, Opened, Session};
use navicache_control::cache::{
    Form, Guarded, Kept, Measure, Method, Quantity, Run, SessionState, Span, Spans, StepRecord, Subject, WalkError,
};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::skipping::{Keeps, Stepper, StepperState};
use navicache_control::solver::{Linear, SolverKind};

/// A number that differs by place.
fn wave(step: usize, salt: usize) -> f64 {
    ((step * 37 + salt * 101) as f64 * 0.61).sin()
}

/// What a step holds: nothing of it outlives the step but the latents.
struct Toy<'a> {
    run: &'a Run,
    step: usize,
    /// The latents.
    x: f64,
    predicted: Vec<(Branch, f64)>,
    /// The features in the forward under way.
    features: f64,
    units: usize,
    error: Option<f64>,
}

impl<'a> Toy<'a> {
    fn new(run: &'a Run) -> Self {
        Toy { run, step: 0, x: 0.75, predicted: Vec::new(), features: 0.0, units: 0, error: None }
    }

    fn begin_step(&mut self, step: usize, x: f64) {
        *self = Toy { step, x, ..Toy::new(self.run) };
    }

    fn unit(&mut self, branch: Branch) {
        let branch = usize::from(branch != Branch::Cond);
        self.features = 0.9 * self.features + 0.2 * wave(self.step, self.units % 7 + 10 * branch) + 0.01;
        self.units += 1;
    }

    /// Guided, as far as there is something to guide with.
    fn velocity(&self) -> f64 {
        self.predicted.iter().zip([3.0, -2.0]).map(|((_, output), weight)| output * weight).sum()
    }

    fn output(&self, branch: Branch) -> f64 {
        self.predicted.iter().find(|(of, _)| *of == branch).map_or(0.0, |(_, output)| *output)
    }
}

impl Forward for Toy<'_> {
    type Value = f64;
    type Scalar = f64;
    type Error = WalkError;

    fn subject(&mut self, place: Place, subject: Subject) -> Result<Option<f64>, WalkError> {
        Ok(match subject {
            Subject::Input => Some(self.x),
            Subject::Output => Some(self.output(place.branch)),
            Subject::Residual => Some(self.output(place.branch) - self.x),
            Subject::CfgDifference => self.predicted.get(1).map(|(_, uncond)| uncond - self.predicted[0].1),
            Subject::Velocity => Some(self.velocity()),
            Subject::Sample => Some(self.x + 0.1),
            Subject::SolverError => self.error,
            Subject::SpanResidual | Subject::SpanOutput | Subject::BlockOutputs => Some(self.features),
            _ => Some(self.features + 0.3 * wave(self.step, 5)),
        })
    }

    fn measure(&mut self, _: Place, q: Quantity, now: &f64, refs: Refs<f64>) -> Result<Option<f64>, WalkError> {
        let computed = |lag: usize| refs.computed.get(lag).map(|reference| reference.value);
        let visited = refs.visited.map(|reference| reference.value);
        let earlier = match q.measure {
            Measure::Magnitude | Measure::Norm => return Ok(Some(now.abs())),
            Measure::Lag(lag) | Measure::LagDistance(lag) => lag.checked_sub(1).and_then(computed),
            measure if measure.since_visit() => visited,
            Measure::AnchorPosition | Measure::LineError => computed(1),
            _ => computed(0),
        };
        Ok(earlier.map(|earlier| (now - earlier).abs() / (0.1 + earlier.abs())))
    }

    fn read(&mut self, scalars: Vec<f64>) -> Result<Vec<f64>, WalkError> {
        Ok(scalars)
    }

    fn compute(&mut self, branch: Branch) -> Result<(), WalkError> {
        self.features = self.x;
        (0..self.run.units.len()).for_each(|_| self.unit(branch));
        self.finish(branch)
    }

    fn begin(&mut self, _: Branch, _: &Spans) -> Result<(), WalkError> {
        (self.features, self.units) = (self.x, 0);
        Ok(())
    }

    fn run_units(&mut self, end: usize) -> Result<(), WalkError> {
        let branch = if self.predicted.is_empty() { Branch::Cond } else { Branch::Uncond };
        while self.units < end {
            self.unit(branch);
        }
        Ok(())
    }

    fn enter(&mut self, _: &Span) -> Result<(), WalkError> {
        Ok(())
    }

    fn replace(&mut self, span: &Span, form: Form, value: f64) -> Result<(), WalkError> {
        self.features = if form == Form::Output { value } else { self.x + value };
        self.units = span.units.end;
        Ok(())
    }

    fn finish(&mut self, branch: Branch) -> Result<(), WalkError> {
        self.predicted.push((branch, self.features));
        Ok(())
    }

    fn kept(&mut self, branch: Branch, kept: Kept) -> Result<f64, WalkError> {
        Ok(match kept {
            Kept::Prediction(Form::Residual) => self.output(branch) - self.x,
            Kept::Prediction(Form::Output) => self.output(branch),
            Kept::CfgDifference => self.output(branch) - self.predicted[0].1,
            Kept::Span(_, Form::Residual) => self.features - self.x,
            Kept::Span(_, Form::Output) => self.features,
        })
    }

    fn sum(&mut self, terms: &[(f64, &f64)], split: Option<(f64, f64)>) -> Result<f64, WalkError> {
        let sum: f64 = terms.iter().map(|(weight, value)| weight * **value).sum();
        Ok(split.map_or(sum, |(low, high)| sum * (low + high) / 2.0))
    }

    fn approximate(&mut self, branch: Branch, kept: Kept, value: f64) -> Result<(), WalkError> {
        let output = match kept {
            Kept::Prediction(Form::Residual) => self.x + value,
            Kept::CfgDifference => self.predicted[0].1 + value,
            _ => value,
        };
        self.predicted.push((branch, output));
        Ok(())
    }
}

impl Linear for Toy<'_> {
    type Value = f64;
    type Error = WalkError;

    fn noise(&mut self, step: usize) -> Result<f64, WalkError> {
        Ok((7.0 * step as f64).sin())
    }

    fn sum(&mut self, terms: &[(f64, &f64)]) -> Result<f64, WalkError> {
        Ok(terms.iter().map(|(weight, value)| weight * **value).sum())
    }
}

/// Everything that a generation is between two steps, as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// `SessionState` over numbers as text.
    pub session: String,
    /// `StepperState` over the same.
    pub stepper: String,
    pub latents: u64,
}

/// What a generation leaves: its records, and all that it is at its end.
pub struct Left {
    pub records: Vec<StepRecord>,
    pub end: Cut,
}

impl Left {
    /// Where two are not the same in every bit.
    pub fn differs(&self, other: &Left) -> Option<String> {
        let text = |record: &StepRecord| serde_json::json!(record).to_string();
        let mut pairs = self.records.iter().map(text).zip(other.records.iter().map(text));
        if let Some((a, b)) = pairs.find(|(a, b)| a != b) {
            return Some(format!("record {a} and {b}"));
        }
        let parts = |cut: &Cut| [cut.session.clone(), cut.stepper.clone(), format!("{:x}", cut.latents)];
        let (a, b) = parts(&self.end).into_iter().zip(parts(&other.end)).find(|(a, b)| a != b)?;
        let at = a.bytes().zip(b.bytes()).position(|(a, b)| a != b).unwrap_or(0).saturating_sub(60);
        let around = |text: &str| text.chars().skip(at).take(160).collect::<String>();
        Some(format!("...{} and ...{}", around(&a), around(&b)))
    }
}

fn hex(_: &str, number: f64) -> Result<String, std::convert::Infallible> {
    Ok(format!("{:016x}", number.to_bits()))
}

fn number(_: &str, hex: String) -> Result<f64, std::num::ParseIntError> {
    u64::from_str_radix(&hex, 16).map(f64::from_bits)
}

/// A session and a solver that go on from a cut.
pub fn resumed(run: &Run, policy: Guarded, cut: &Cut) -> Result<Session<f64, f64>, String> {
    let state: SessionState<String> = serde_json::from_str(&cut.session).map_err(|e| e.to_string())?;
    Session::resume(run.clone(), policy, state.map(&mut number).unwrap()).map_err(|e| e.to_string())
}

/// A generation from its first step, or from a cut; where `cuts` says so, all is dropped and read again.
pub fn generate(
    run: &Run,
    method: &dyn Method,
    solver: SolverKind,
    from: Option<(usize, &Cut)>,
    cuts: &dyn Fn(usize) -> bool,
    mut on_cut: impl FnMut(usize, &Cut),
) -> Left {
    let schedule = Schedule::of(run.steps.clone());
    let keeps = Keeps::WhatCorrects;
    let mut toy = Toy::new(run);
    let mut session = Session::new(run.clone(), method.try_start(run).unwrap());
    let mut stepper = Stepper::new(solver, schedule.clone(), keeps);
    let (mut latents, mut first) = (0.75, 0);
    let again = |cut: &Cut| {
        let state: StepperState<String> = serde_json::from_str(&cut.stepper).unwrap();
        let stepper = Stepper::resume(solver, schedule.clone(), keeps, state.map(&mut number).unwrap()).unwrap();
        (resumed(run, method.try_start(run).unwrap(), cut).unwrap(), stepper, f64::from_bits(cut.latents))
    };
    if let Some((step, cut)) = from {
        (session, stepper, latents) = again(cut);
        first = step;
    }
    for step in first..run.steps.len() {
        toy.begin_step(step, latents);
        latents = match session.begin_step(step, &mut toy).unwrap() {
            Begun::Skipped(skip) => {
                let next = stepper.skip(step, skip, &mut toy).unwrap();
                session.end_step(&mut toy).unwrap();
                next
            }
            Begun::Branches => {
                for &branch in &run.branches {
                    session.branch(branch, &mut toy).unwrap();
                }
                let velocity = toy.velocity();
                stepper.arrive(step, &latents, &velocity, &mut toy).unwrap();
                toy.error = stepper.error(&latents, &mut toy).unwrap();
                session.end_step(&mut toy).unwrap();
                stepper.leave(step, &mut toy).unwrap()
            }
        }
        .unwrap();
        if cuts(step + 1) {
            let cut = cut(&mut session, &stepper, latents, &mut toy);
            on_cut(step + 1, &cut);
            (session, stepper, latents) = again(&cut);
            toy = Toy::new(run);
        }
    }
    let end = cut(&mut session, &stepper, latents, &mut toy);
    Left { records: session.finish(&mut toy).unwrap(), end }
}

fn cut(session: &mut Session<f64, f64>, stepper: &Stepper<f64>, latents: f64, toy: &mut Toy) -> Cut {
    let mut names = std::collections::BTreeSet::new();
    let mut once = |name: &str, value: f64| {
        assert!(names.insert(name.to_string()), "{name}: two values of one name");
        hex(name, value)
    };
    let state = session.save(toy).unwrap().map(&mut once).unwrap();
    let walked = stepper.save().map(&mut once).unwrap();
    let json = |value: serde_json::Value| value.to_string();
    Cut {
        session: json(serde_json::json!(state)),
        stepper: json(serde_json::json!(walked)),
        latents: latents.to_bits(),
    }
}

/// The records of a generation whose loop and forwards somebody else leads: branches come in pieces, the run's segments
/// become known as they begin, and every value is let go of before what was measured last is read.
pub fn led(run: &Run, method: &dyn Method, solver: SolverKind) -> Vec<StepRecord> {
    let unknown = Run { segments: vec![], ..run.clone() };
    let mut toy = Toy::new(run);
    let mut session = Session::new(unknown.clone(), method.try_start(&unknown).unwrap());
    let mut stepper = Stepper::new(solver, Schedule::of(run.steps.clone()), Keeps::WhatCorrects);
    let mut latents = 0.75;
    for step in 0..run.steps.len() {
        if run.segments.contains(&step) {
            session.begin_segment(step);
        }
        toy.begin_step(step, latents);
        let next = match session.begin_step(step, &mut toy).unwrap() {
            Begun::Skipped(skip) => {
                let next = stepper.skip(step, skip, &mut toy).unwrap();
                session.end_step(&mut toy).unwrap();
                next
            }
            Begun::Branches => {
                for &branch in &run.branches {
                    match session.open_branch(branch, &mut toy).unwrap() {
                        Opened::Approximated => continue,
                        Opened::Whole => toy.compute(branch).unwrap(),
                        Opened::Spans(spans) => forward(&mut session, &mut toy, branch, &spans),
                    }
                    session.close_branch(&mut toy).unwrap();
                }
                let velocity = toy.velocity();
                stepper.arrive(step, &latents, &velocity, &mut toy).unwrap();
                toy.error = stepper.error(&latents, &mut toy).unwrap();
                session.end_step(&mut toy).unwrap();
                stepper.leave(step, &mut toy).unwrap()
            }
        };
        latents = next.unwrap();
    }
    session.release();
    session.finish(&mut toy).unwrap()
}

/// A forward that runs unit by unit, and looks for spans that begin or end there.
fn forward(session: &mut Session<f64, f64>, toy: &mut Toy, branch: Branch, spans: &Spans) {
    toy.begin(branch, spans).unwrap();
    let mut runs = vec![true; spans.cut.len()];
    for unit in 0..toy.run.units.len() {
        for (index, _) in spans.cut.iter().enumerate().filter(|(_, span)| span.units.start == unit) {
            runs[index] = session.enter_span(index, toy).unwrap();
        }
        let of = spans.cut.iter().position(|span| span.units.contains(&unit));
        if of.is_none_or(|index| runs[index]) {
            toy.run_units(unit + 1).unwrap();
        }
        for (index, _) in spans.cut.iter().enumerate().filter(|(_, span)| span.units.end == unit + 1) {
            if runs[index] {
                session.leave_span(index, toy).unwrap();
            }
        }
    }
    toy.finish(branch).unwrap();
}

/// Learns the branches of a run from its first step, and hands out the state after so many steps.
pub fn learnt(run: &Run, method: Box<dyn Method + Send>, branches: &[Branch], steps: usize) -> SessionState<f64> {
    let mut toy = Toy::new(run);
    let mut session = Session::learning(run.clone(), method).unwrap();
    for step in 0..steps {
        assert_eq!(step == 0, session.save(&mut toy).is_err(), "there is a state once the branches are known");
        toy.begin_step(step, 0.75 - 0.01 * step as f64);
        if session.begin_step(step, &mut toy).unwrap() == Begun::Branches {
            for &branch in branches {
                session.branch(branch, &mut toy).unwrap();
                assert!(session.save(&mut toy).is_err(), "within a step there is no state");
            }
        }
        session.end_step(&mut toy).unwrap();
    }
    session.save(&mut toy).unwrap()
}

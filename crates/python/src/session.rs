//! A generation under a cache policy, led from Python: control's walk over values that are Python objects.
//!
//! Rust decides, remembers and keeps; what a value is, is Python's business (tensors of torch). The other side of the
//! conversation is an object with the methods of `navicache.forward.Forward`.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use navicache_control::cache::references::{Place, Refs};
use navicache_control::cache::walk::{Begun, Forward, Opened, Session as Walk};
use navicache_control::cache::{
    At, CacheMemory, Form, Kept, Measure, Method as _, Quantity, Run, Span, Spans, StepRecord, Subject, WalkError,
};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::skipping::{Keeps, Skip, Stepper};
use navicache_control::solver::{Linear, SolverKind};
use navicache_control::strip::{Ran, Strip};
use navicache_engine::replay::trace::Stack;
use navicache_engine::report::{StepReport, Totals};
use navicache_engine::{advice, report_target, trace};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::method::{Configured, Method, Shared, named, run, value_error};
use crate::offline::Trace;
use crate::samples::Samples;

/// A value of Python's: what is measured, kept and added up.
type Value = Arc<Py<PyAny>>;

/// A measurement that was not read yet, and what it is of.
struct Scalar {
    tensor: Py<PyAny>,
    at: At,
    quantity: Quantity,
}

/// What went wrong: in the walk, or on Python's side.
enum Failure {
    Walk(WalkError),
    Python(PyErr),
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Self {
        Failure::Walk(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Walk(error) => PyRuntimeError::new_err(error.to_string()),
            Failure::Python(error) => error,
        }
    }
}

/// One generation under a method.
#[pyclass(frozen, module = "navicache._core")]
pub struct Session(Mutex<Led>);

/// What a session leads.
struct Led {
    method: Arc<Configured>,
    run: Run,
    spans: usize,
    /// `None` once it is finished.
    walk: Option<Walk<Value, Scalar>>,
    stepper: Option<Stepper<Value>>,
    learns_error: bool,
    /// What is measured of samples that have policies of their own.
    samples: Samples,
    /// How the step under way is skipped.
    skip: Option<Skip>,
    budgets: Vec<(usize, f64)>,
}

/// Python's side of the conversation, for one call.
struct Holder<'a, 'py> {
    python: &'a Bound<'py, PyAny>,
    samples: Samples,
    of_solver: Option<OfSolver>,
}

/// What the solver found out about a computed step.
struct OfSolver {
    velocity: Value,
    sample: Value,
    error: Option<Value>,
}

#[pymethods]
impl Session {
    /// Begins a run of a method.
    ///
    /// * `steps` - pairs of a timestep and a noise level, noisiest first
    /// * `branches` - the names of the branches, as far as they are known; the first step shows which there are
    /// * `blocks` - of the model, in order: the parts of each, by name
    /// * `segments` - steps at which another network takes over, as far as they are known
    /// * `solver` - which one steps are left to; without it they are not
    /// * `samples` - in a batch, each with a policy of its own: what all of these reuse is reused. With 1 there is one
    ///   policy for all
    #[new]
    #[pyo3(signature = (method, steps, branches, blocks, segments=Vec::new(), solver=None, samples=1))]
    fn new(
        method: &Method,
        steps: Vec<(f64, f64)>,
        branches: Vec<String>,
        blocks: Vec<Vec<String>>,
        segments: Vec<usize>,
        solver: Option<&str>,
        samples: usize,
    ) -> PyResult<Self> {
        let method = method.configured();
        let run = run(&method, steps, branches, blocks, segments)?;
        if samples > 1 && method.target().is_some() {
            return Err(value_error(format!("{samples} samples: a target steers one policy, expected samples=1")));
        }
        let measured = Samples::default();
        let apart = (samples > 1).then(|| (samples, measured.clone()));
        let shared = Shared::new(Arc::clone(&method), apart);
        let walk = Walk::learning(run.clone(), Box::new(shared)).map_err(value_error)?;
        let asks = walk.asks();
        let solver = solver.map(str::parse::<SolverKind>).transpose().map_err(value_error)?;
        if let Some(solver) = solver {
            asks.check_solver(solver).map_err(|reason| method.refused(reason))?;
            if solver.adds_noise() {
                return Err(value_error(format!("solver {solver}: expected one that adds no noise")));
            }
        }
        let keeps: Keeps = asks.solver_keeps();
        let stepper = solver.map(|kind| Stepper::new(kind, Schedule::of(run.steps.clone()), keeps));
        let spans = asks.spans.as_ref().map_or(0, |spans| spans.cut.len());
        let learns_error = asks.learns(Subject::SolverError);
        Ok(Session(Mutex::new(Led {
            method,
            run,
            spans,
            walk: Some(walk),
            stepper,
            learns_error,
            samples: measured,
            skip: None,
            budgets: Vec::new(),
        })))
    }

    /// Bytes that are kept at most, with latents and features of one branch of so many bytes. After the first step of
    /// the branches that there are.
    fn store_bytes(&self, latents: u64, features: u64) -> PyResult<u64> {
        let led = self.led()?;
        let walk = led.walk()?;
        let branches = walk.run().branches.len();
        Ok(CacheMemory::new(walk.asks(), branches, latents, features, led.run.block_count()).bytes)
    }

    /// What it decides about, and what it computes in any case, as JSON.
    fn outline(&self) -> PyResult<String> {
        let led = self.led()?;
        let asks = led.walk()?.asks();
        let spans = asks.spans.iter().map(|spans| format!("{} spans of blocks", spans.cut.len()));
        let whole = [("whole steps", asks.step.is_some()), ("branches", asks.branch.is_some())];
        let scopes = whole.into_iter().filter(|(_, is_asked)| *is_asked).map(|(name, _)| name.to_string());
        let guard = led.method.guard(led.run.steps.len());
        Ok(serde_json::json!({
            "scopes": scopes.chain(spans).collect::<Vec<_>>(),
            "first_steps": guard.first_steps,
            "last_steps": guard.last_steps,
            "longest_run": guard.max_run,
        })
        .to_string())
    }

    /// Another network takes over at a step that was not begun yet.
    fn begin_segment(&self, step: usize) -> PyResult<()> {
        self.led()?.walk_mut()?.begin_segment(step);
        Ok(())
    }

    /// Asks about a step: whether its branches come next. If not, the solver skips it.
    fn begin_step(&self, step: usize, holder: &Bound<'_, PyAny>) -> PyResult<bool> {
        let mut led = self.led()?;
        let mut holder = led.holder(holder);
        let begun = led.walk_mut()?.begin_step(step, &mut holder)?;
        led.skip = match begun {
            Begun::Branches => None,
            Begun::Skipped(skip) => Some(skip),
        };
        Ok(begun == Begun::Branches)
    }

    /// Asks about a branch: `approximated`, `whole` (compute it in one go), or `spans`.
    fn open_branch(&self, branch: &str, holder: &Bound<'_, PyAny>) -> PyResult<&'static str> {
        let (branch, mut led) = (named(branch)?, self.led()?);
        let mut holder = led.holder(holder);
        Ok(match led.walk_mut()?.open_branch(branch, &mut holder)? {
            Opened::Approximated => "approximated",
            Opened::Whole => "whole",
            Opened::Spans(_) => "spans",
        })
    }

    /// The cut of the units that spans are asked about by: the first unit, the one behind the last, and the one that
    /// its residual begins at.
    fn spans(&self) -> PyResult<Vec<(usize, usize, usize)>> {
        let led = self.led()?;
        let cut = led.walk()?.asks().spans.as_ref().map(|spans| spans.cut.clone()).unwrap_or_default();
        Ok(cut.into_iter().map(|span| (span.units.start, span.units.end, span.since)).collect())
    }

    /// Asks about a span of the branch that is open: whether its units run.
    fn enter_span(&self, index: usize, holder: &Bound<'_, PyAny>) -> PyResult<bool> {
        let mut led = self.led()?;
        let mut holder = led.holder(holder);
        Ok(led.walk_mut()?.enter_span(index, &mut holder)?)
    }

    /// The units of a span have run.
    fn leave_span(&self, index: usize, holder: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut led = self.led()?;
        let mut holder = led.holder(holder);
        Ok(led.walk_mut()?.leave_span(index, &mut holder)?)
    }

    /// The branch that is open was computed.
    fn close_branch(&self, holder: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut led = self.led()?;
        let mut holder = led.holder(holder);
        led.walk_mut()?.close_branch(&mut holder)?;
        Ok(())
    }

    /// Learns from a step whose branches are through.
    fn end_step(&self, holder: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut led = self.led()?;
        let mut holder = led.holder(holder);
        led.end_step(&mut holder)
    }

    /// The same where the guided velocity is known: the solver takes it in, and hands out the latents that the next
    /// step starts from. Without a solver it hands out nothing.
    ///
    /// * `x` - the latents of the step
    fn advance(
        &self,
        step: usize,
        x: Py<PyAny>,
        velocity: Py<PyAny>,
        holder: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let (py, mut led) = (holder.py(), self.led()?);
        let mut holder = led.holder(holder);
        let (x, velocity): (Value, Value) = (Arc::new(x), Arc::new(velocity));
        if let (Some(skip), Some(stepper)) = (led.skip, &mut led.stepper) {
            let next = stepper.skip(step, skip, &mut holder)?;
            led.end_step(&mut holder)?;
            return Ok(next.map(|next| next.clone_ref(py)));
        }
        let Led { stepper, learns_error, .. } = &mut *led;
        let (mut sample, mut error) = (None, None);
        if let Some(stepper) = stepper {
            sample = stepper.arrive(step, &x, &velocity, &mut holder)?;
            error = if *learns_error { stepper.error(&x, &mut holder)? } else { None };
        }
        if let Some(sample) = &sample {
            holder.python.call_method1("amend_input", (sample.clone_ref(py),))?;
        }
        holder.of_solver = Some(OfSolver { velocity, sample: sample.unwrap_or(x), error });
        led.end_step(&mut holder)?;
        let next = led.stepper.as_ref().map(|stepper| stepper.leave(step, &mut holder)).transpose()?.flatten();
        Ok(next.map(|next| next.clone_ref(py)))
    }

    /// The generation is over: every value is let go of. What was measured last is read by `finish`.
    fn release(&self) -> PyResult<()> {
        let mut led = self.led()?;
        led.stepper = None;
        led.walk_mut()?.release();
        Ok(())
    }

    /// Ends the generation: its part of the report, as JSON.
    ///
    /// * `seconds` - of every step that was ended: its own, and its branches'
    fn finish(&self, holder: &Bound<'_, PyAny>, seconds: Vec<(f64, Vec<f64>)>) -> PyResult<String> {
        let mut led = self.led()?;
        let records = led.finish(holder)?;
        Ok(led.report(&records, &seconds).to_string())
    }

    /// Ends the generation that a recorder has led: its trace.
    fn trace(&self, holder: &Bound<'_, PyAny>, model: String, prompt: String, seed: u64) -> PyResult<Trace> {
        let mut led = self.led()?;
        let steps = led.finish(holder)?.iter().map(|record| StepReport::of(&led.run, 0, record, 0.0, &[])).collect();
        let about = trace::About { model, prompt, seed, made: None };
        Ok(Trace(trace::recorded(about, &led.run, led.method.lags(), steps)))
    }
}

impl Led {
    /// Ends the walk: what became of every step that was ended.
    fn finish(&mut self, holder: &Bound<'_, PyAny>) -> PyResult<Vec<StepRecord>> {
        self.budgets = self.walk()?.budgets().to_vec();
        self.run = self.walk()?.run().clone();
        let mut holder = self.holder(holder);
        let mut records = self.take()?.finish(&mut holder)?;
        records.retain(|record| !record.branches.is_empty()); // one that was cut short
        Ok(records)
    }
}

impl Session {
    /// What it leads, for as long as nobody else asks: neither another thread, nor Python while it is asked itself.
    fn led(&self) -> PyResult<std::sync::MutexGuard<'_, Led>> {
        match self.0.try_lock() {
            Ok(led) => Ok(led),
            Err(TryLockError::Poisoned(poisoned)) => Ok(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => {
                Err(PyRuntimeError::new_err("a run was asked while it was answering: one thread leads a run"))
            }
        }
    }
}

impl Led {
    fn holder<'a, 'py>(&self, python: &'a Bound<'py, PyAny>) -> Holder<'a, 'py> {
        Holder::of(python, &self.samples)
    }

    fn walk(&self) -> PyResult<&Walk<Value, Scalar>> {
        self.walk.as_ref().ok_or_else(over)
    }

    fn walk_mut(&mut self) -> PyResult<&mut Walk<Value, Scalar>> {
        self.walk.as_mut().ok_or_else(over)
    }

    fn take(&mut self) -> PyResult<Walk<Value, Scalar>> {
        self.walk.take().ok_or_else(over)
    }

    fn end_step(&mut self, holder: &mut Holder) -> PyResult<()> {
        self.skip = None;
        self.walk_mut()?.end_step(holder)?;
        Ok(())
    }

    /// What a run says of itself; who led it adds what only he knows.
    fn report(&self, records: &[StepRecord], seconds: &[(f64, Vec<f64>)]) -> serde_json::Value {
        let mut strip = Strip::default();
        let ran = |record: &StepRecord| record.branches.iter().map(|branch| branch.ran()).collect::<Vec<Ran>>();
        records.iter().for_each(|record| strip.push(ran(record)));
        let step = |(index, record): (usize, &StepRecord)| {
            let (of_step, of_branches) = seconds.get(index).map_or((0.0, &[][..]), |(step, all)| (*step, &all[..]));
            StepReport::of(&self.run, self.spans, record, of_step, of_branches)
        };
        let steps: Vec<StepReport> = records.iter().enumerate().map(step).collect();
        let guards: Vec<_> = records.iter().flat_map(|record| record.alarms.clone()).collect();
        let mut warnings: Vec<String> = guards.iter().map(ToString::to_string).collect();
        let broken = |record: &&StepRecord| record.measured.iter().any(|(_, _, value)| !value.is_finite());
        warnings.extend(records.iter().find(broken).map(|record| {
            format!("step {}: what was measured is not a number: everything is computed until it is again", record.step)
        }));
        warnings.extend(advice::after(&*self.method, &strip, records));
        let steered = self.method.steered(self.run.steps.len());
        let target = self.method.target().zip(steered.as_ref());
        let target = target.map(|(target, steered)| report_target(target, steered, self.budgets.clone(), records));
        let mut report = serde_json::json!({
            "version": navicache_engine::report::VERSION,
            "family": self.run.family,
            "cache": navicache_engine::report::described(&*self.method),
            "branches": self.run.branches,
            "stacks": Stack::of(&self.run.units),
            "strip": strip.to_string(),
            "totals": Totals::of(&strip, &steps),
            "steps": steps,
            "guards": guards,
            "warnings": warnings,
        });
        if let Some(target) = target {
            report["target"] = serde_json::json!(target);
        }
        report
    }
}

fn over() -> PyErr {
    PyRuntimeError::new_err("the run is over")
}

impl<'a, 'py> Holder<'a, 'py> {
    fn of(python: &'a Bound<'py, PyAny>, samples: &Samples) -> Self {
        Holder { python, samples: samples.clone(), of_solver: None }
    }

    fn py(&self) -> Python<'py> {
        self.python.py()
    }

    fn terms(&self, terms: &[(f64, &Value)]) -> PyResult<Bound<'py, PyList>> {
        PyList::new(self.py(), terms.iter().map(|(weight, value)| (*weight, value.clone_ref(self.py()))))
    }
}

impl Forward for Holder<'_, '_> {
    type Value = Value;
    type Scalar = Scalar;
    type Error = Failure;

    fn subject(&mut self, place: Place, subject: Subject) -> Result<Option<Value>, Failure> {
        let of_solver = self.of_solver.as_ref();
        let name = match subject {
            Subject::Velocity => return Ok(of_solver.map(|of| of.velocity.clone())),
            Subject::Sample => return Ok(of_solver.map(|of| of.sample.clone())),
            Subject::SolverError => return Ok(of_solver.and_then(|of| of.error.clone())),
            Subject::Trial { frames, size } => {
                let value = self.python.call_method1("trial", (place.branch.name(), frames, size))?;
                return Ok(given(value).map(Arc::new));
            }
            Subject::Input => "input",
            Subject::Output => "output",
            Subject::Residual => "residual",
            Subject::CfgDifference => "cfg_difference",
            Subject::TimeEmbedding => "time_embedding",
            Subject::TimeProjection => "time_projection",
            Subject::ModulatedInput => "modulated_input",
            Subject::FilteredInput => "filtered_input",
            Subject::SpanResidual => "span_residual",
            Subject::SpanOutput => "span_output",
            Subject::BlockOutputs => "block_outputs",
        };
        let value = self.python.call_method1("subject", (place.branch.name(), name, place.at.sigma.0))?;
        Ok(given(value).map(Arc::new))
    }

    fn measure(
        &mut self,
        place: Place,
        quantity: Quantity,
        now: &Value,
        refs: Refs<'_, Value>,
    ) -> Result<Option<Scalar>, Failure> {
        let (py, timestep) = (self.py(), place.at.timestep.0);
        let (name, lag) = match quantity.measure {
            Measure::Magnitude => ("magnitude", 0),
            Measure::Norm => ("norm", 0),
            Measure::ChangeSinceVisit => ("change_since_visit", 0),
            Measure::ChangeSinceCompute => ("change_since_compute", 0),
            Measure::RelativeChangeSinceVisit => ("relative_change_since_visit", 0),
            Measure::RelativeChangeSinceCompute => ("relative_change_since_compute", 0),
            Measure::DistanceSinceVisit => ("distance_since_visit", 0),
            Measure::CosineSinceCompute => ("cosine_since_compute", 0),
            Measure::TokenRatioSinceVisit => ("token_ratio_since_visit", 0),
            Measure::AnchorPosition => ("anchor_position", 0),
            Measure::LineError => ("line_error", 0),
            Measure::Lag(lag) => ("lag", lag),
            Measure::LagDistance(lag) => ("lag_distance", lag),
        };
        let visited = refs.visited.map(|reference| reference.value.clone_ref(py));
        let needed = refs.computed.iter().take(quantity.measure.anchors());
        let computed = needed.map(|reference| (reference.timestep.0, reference.value.clone_ref(py)));
        let computed = PyList::new(py, computed.collect::<Vec<_>>())?;
        let tensor =
            self.python.call_method1("measure", (name, lag, now.clone_ref(py), visited, computed, timestep))?;
        Ok(given(tensor).map(|tensor| Scalar { tensor, at: place.at, quantity }))
    }

    /// Of each measurement Python says the number of the whole batch, then those of samples with policies of their own.
    fn read(&mut self, scalars: Vec<Scalar>) -> Result<Vec<f64>, Failure> {
        let tensors = PyList::new(self.py(), scalars.iter().map(|scalar| &scalar.tensor))?;
        let all: Vec<Vec<f64>> = self.python.call_method1("read", (tensors,))?.extract()?;
        if all.len() != scalars.len() || all.iter().any(Vec::is_empty) {
            let (found, count) = (all.len(), scalars.len());
            return Err(PyValueError::new_err(format!("{found} numbers were read of {count} measurements")).into());
        }
        for (scalar, numbers) in scalars.iter().zip(&all).filter(|(_, numbers)| numbers.len() > 1) {
            self.samples.put(scalar.at, scalar.quantity, numbers[1..].to_vec());
        }
        Ok(all.iter().map(|numbers| numbers[0]).collect())
    }

    fn compute(&mut self, branch: Branch) -> Result<(), Failure> {
        self.python.call_method1("compute", (branch.name(),))?;
        Ok(())
    }

    fn begin(&mut self, branch: Branch, _: &Spans) -> Result<(), Failure> {
        self.compute(branch)
    }

    fn run_units(&mut self, _: usize) -> Result<(), Failure> {
        Ok(())
    }

    fn enter(&mut self, span: &Span) -> Result<(), Failure> {
        self.python.call_method1("enter", (span.units.start, span.units.end, span.since))?;
        Ok(())
    }

    fn replace(&mut self, span: &Span, form: Form, value: Value) -> Result<(), Failure> {
        let value = value.clone_ref(self.py());
        self.python.call_method1("replace", (span.units.end, form == Form::Output, value))?;
        Ok(())
    }

    fn finish(&mut self, _: Branch) -> Result<(), Failure> {
        Ok(())
    }

    fn kept(&mut self, branch: Branch, kept: Kept) -> Result<Value, Failure> {
        Ok(Arc::new(self.python.call_method1("kept", (branch.name(), kept_name(kept)))?.unbind()))
    }

    fn sum(&mut self, terms: &[(f64, &Value)], split: Option<(f64, f64)>) -> Result<Value, Failure> {
        Ok(Arc::new(self.python.call_method1("sum", (self.terms(terms)?, split))?.unbind()))
    }

    fn approximate(&mut self, branch: Branch, kept: Kept, value: Value) -> Result<(), Failure> {
        let value = value.clone_ref(self.py());
        self.python.call_method1("approximate", (branch.name(), kept_name(kept), value))?;
        Ok(())
    }
}

/// The solver adds tensors up.
impl Linear for Holder<'_, '_> {
    type Value = Value;
    type Error = Failure;

    fn sum(&mut self, terms: &[(f64, &Value)]) -> Result<Value, Failure> {
        Forward::sum(self, terms, None)
    }

    /// Steps are not left to a solver that would ask for it.
    fn noise(&mut self, step: usize) -> Result<Value, Failure> {
        Err(value_error(format!("step {step}: no noise is added here, expected a solver that adds none")).into())
    }
}

/// What Python gave, unless it is `None`.
fn given(value: Bound<'_, PyAny>) -> Option<Py<PyAny>> {
    (!value.is_none()).then(|| value.unbind())
}

fn kept_name(kept: Kept) -> &'static str {
    match kept {
        Kept::Prediction(Form::Residual) => "residual",
        Kept::Prediction(Form::Output) => "output",
        Kept::CfgDifference => "cfg_difference",
        Kept::Span(_, Form::Residual) => "span_residual",
        Kept::Span(_, Form::Output) => "span_output",
    }
}

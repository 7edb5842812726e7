//! A cache method as Python configures it: the text of `--cache`, a family of models, a target, guards.

use std::str::FromStr;
use std::sync::Arc;

use navicache_control::cache::curve::Curve;
use navicache_control::cache::watch::Mode;
use navicache_control::cache::{
    Approx, Asks, CacheConfig, CacheSpec, Guard, Guarded, Method as Cached, Part, Policy, Run, Subject, Unit,
};
use navicache_control::guidance::Branch;
use navicache_control::schedule::{Sigma, Step, Timestep};
use navicache_control::target::{Steered, Target};
use navicache_engine::replay::trace::{Looks, Recorder};
use navicache_engine::{advice, cache_argument, curve_of, report};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::Value;

use crate::samples::{PerSample, Samples};

/// A method as configured.
pub struct Configured {
    family: String,
    kind: Kind,
    guards: Mode,
}

/// What decides.
enum Kind {
    /// A cache method, under a target or not.
    Cache(Box<Cache>),
    /// Everything is computed and measured, for a trace.
    Recorder(Recorder),
}

struct Cache {
    spec: CacheSpec,
    config: CacheConfig,
    target: Option<(Target, Curve)>,
}

impl Configured {
    fn new(cache: &str, family: &str, target: Option<&str>, guards: &str) -> Result<Self, String> {
        let words = |e: &dyn std::fmt::Display| e.to_string();
        let spec = cache_argument(cache).map_err(|e| words(&e))?;
        let config = spec.resolve(family).map_err(|e| words(&e))?;
        let target = match target {
            None => None,
            Some(text) => {
                let target = Target::from_str(text).map_err(|e| words(&e))?;
                if target.budgets(1).is_empty() {
                    return Err(format!(
                        "target {text:?}: a time or a closeness is a target of the engine's; give speedup, work or steps"
                    ));
                }
                let curve = curve_of(&target, config.method(), family).map_err(|e| words(&e))?;
                Steered::new(config.method(), &spec, curve.clone(), Vec::new())?;
                Some((target, curve))
            }
        };
        let guards: Mode = guards.parse().map_err(|e: String| format!("guards {guards:?}: {e}"))?;
        let guards = config.guarded(guards);
        Ok(Configured {
            family: family.to_string(),
            kind: Kind::Cache(Box::new(Cache { spec, config, target })),
            guards,
        })
    }

    /// The family of models that presets are looked up by.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// The target, if there is one.
    pub fn target(&self) -> Option<&Target> {
        match &self.kind {
            Kind::Cache(cache) => cache.target.as_ref().map(|(target, _)| target),
            Kind::Recorder(_) => None,
        }
    }

    /// Earlier steps that a recorder refers to; 0 of any other method.
    pub fn lags(&self) -> usize {
        match &self.kind {
            Kind::Recorder(recorder) => recorder.lags,
            Kind::Cache(_) => 0,
        }
    }

    /// The method under its target, for a run of so many steps.
    pub fn steered(&self, steps: usize) -> Option<Steered<'_>> {
        let Kind::Cache(cache) = &self.kind else { return None };
        let Cache { spec, config, target: Some((target, curve)) } = &**cache else { return None };
        Steered::new(config.method(), spec, curve.clone(), target.budgets(steps)).ok()
    }

    /// Asks the method that runs.
    fn with<T>(&self, steps: usize, ask: impl FnOnce(&dyn Cached) -> T) -> T {
        match (&self.kind, self.steered(steps)) {
            (_, Some(steered)) => ask(&steered),
            (Kind::Cache(cache), None) => ask(cache.config.method()),
            (Kind::Recorder(recorder), None) => ask(recorder),
        }
    }

    /// The method does not fit, with the reason.
    pub fn refused(&self, reason: String) -> PyErr {
        PyValueError::new_err(format!("cache method {}: {reason}", self.name()))
    }
}

/// The same, for a session to hold.
pub struct Shared {
    method: Arc<Configured>,
    /// Samples with a policy of their own, and what is measured of them; `None`: one policy decides for all.
    apart: Option<(usize, Samples)>,
}

impl Shared {
    /// For a batch of one sample, or of several with a policy each.
    pub fn new(method: Arc<Configured>, apart: Option<(usize, Samples)>) -> Self {
        Shared { method, apart }
    }
}

impl Cached for Shared {
    fn name(&self) -> &str {
        self.method.name()
    }

    fn guard(&self, steps: usize) -> Guard {
        self.method.guard(steps)
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let Some((samples, measured)) = &self.apart else { return self.method.policy(run) };
        let policies = (0..*samples).map(|_| self.method.policy(run)).collect();
        Box::new(PerSample::new(policies, measured.clone()))
    }

    fn options(&self) -> Value {
        self.method.options()
    }

    fn caches(&self) -> bool {
        self.method.caches()
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        self.method.check_run(run)
    }

    fn start(&self, run: &Run) -> Guarded {
        match self.apart {
            None => self.method.start(run),
            Some(_) => {
                let guarded = self.guard(run.steps.len()).around(self.policy(run), run);
                guarded.watched(self.method.guards, &*self.method)
            }
        }
    }
}

impl Cached for Configured {
    fn name(&self) -> &str {
        match &self.kind {
            Kind::Cache(cache) => cache.config.method().name(),
            Kind::Recorder(recorder) => recorder.name(),
        }
    }

    fn guard(&self, steps: usize) -> Guard {
        self.with(steps, |method| method.guard(steps))
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        self.with(run.steps.len(), |method| method.policy(run))
    }

    fn options(&self) -> Value {
        self.with(1, |method| method.options())
    }

    fn caches(&self) -> bool {
        self.with(1, |method| method.caches())
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        self.with(run.steps.len(), |method| method.check_run(run))
    }

    fn start(&self, run: &Run) -> Guarded {
        self.with(run.steps.len(), |method| method.start(run).watched(self.guards, method))
    }
}

/// A cache method, with its options, for a family of models.
#[pyclass(frozen, module = "navicache._core")]
pub struct Method(Arc<Configured>);

#[pymethods]
impl Method {
    /// * `cache` - as on the command line: `navicache:mid`, `easycache,threshold=0.1`, `@preset.json`
    /// * `family` - of models, which presets and curves are looked up by
    /// * `target` - `speedup=2`, `work=40%`, `steps=20`
    /// * `guards` - `act`, `warn` or `off`
    #[new]
    #[pyo3(signature = (cache, family, target=None, guards="act"))]
    fn new(cache: &str, family: &str, target: Option<&str>, guards: &str) -> PyResult<Self> {
        Configured::new(cache, family, target, guards)
            .map(|method| Method(Arc::new(method)))
            .map_err(PyValueError::new_err)
    }

    /// Computes everything, and measures whatever methods may ask for about steps and branches.
    #[staticmethod]
    fn recorder(family: &str, lags: usize) -> Self {
        let recorder = Recorder { lags, looks: Looks::AtSteps, ..Recorder::default() };
        Method(Arc::new(Configured { family: family.to_string(), kind: Kind::Recorder(recorder), guards: Mode::Off }))
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// The family of models.
    #[getter]
    fn family(&self) -> &str {
        self.0.family()
    }

    /// The method with all its options, as in reports, as JSON.
    fn described(&self) -> String {
        report::described(&*self.0).to_string()
    }

    /// Whether it ever reuses anything.
    #[getter]
    fn caches(&self) -> bool {
        self.0.caches()
    }

    /// What there is to say before a run of so many steps.
    fn advice(&self, steps: usize) -> Option<String> {
        advice::before(&*self.0, steps)
    }

    /// What it needs of whoever runs the model: `spans` (blocks one by one), `parts` (of blocks), `trial` (a forward of
    /// thinned-out latents), `from_cond` (branches one by one: one is made from the other), `velocity` (of all branches
    /// together), `solver` (steps are left to it), `block_outputs` (all of a forward at once), and signals by name.
    ///
    /// Arguments as for a session.
    fn needs(
        &self,
        steps: Vec<(f64, f64)>,
        branches: Vec<String>,
        blocks: Vec<Vec<String>>,
    ) -> PyResult<Vec<&'static str>> {
        let run = run(&self.0, steps, branches, blocks, Vec::new())?;
        let policy = self.0.try_start(&run).map_err(|reason| self.0.refused(reason))?;
        Ok(needs(policy.asks(), &run))
    }
}

impl Method {
    /// The method.
    pub fn configured(&self) -> Arc<Configured> {
        Arc::clone(&self.0)
    }
}

/// A run as policies see it.
pub(crate) fn run(
    method: &Configured,
    steps: Vec<(f64, f64)>,
    branches: Vec<String>,
    blocks: Vec<Vec<String>>,
    segments: Vec<usize>,
) -> PyResult<Run> {
    let step = |(timestep, sigma)| Step { timestep: Timestep(timestep), sigma: Sigma(sigma) };
    let part = |name: String| serde_json::from_value::<Part>(name.into()).map_err(value_error);
    let mut units = Vec::new();
    for (block, parts) in blocks.into_iter().enumerate() {
        for name in parts {
            units.push(Unit { block, part: part(name)? });
        }
    }
    Ok(Run {
        family: method.family().to_string(),
        steps: steps.into_iter().map(step).collect(),
        branches: branches.iter().map(|branch| named(branch)).collect::<PyResult<_>>()?,
        units,
        segments,
    })
}

/// What is wrong with something that was given.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A branch by its name.
pub(crate) fn named(branch: &str) -> PyResult<Branch> {
    Branch::try_from(branch.to_string()).map_err(PyValueError::new_err)
}

fn needs(asks: &Asks, run: &Run) -> Vec<&'static str> {
    let of_steps = asks.step.iter().chain(&asks.branch);
    let all = of_steps.clone().chain(asks.spans.iter().map(|spans| &spans.question));
    let subjects: Vec<Subject> =
        all.flat_map(|question| question.to_decide.iter().chain(&question.to_learn)).map(|q| q.subject).collect();
    let measures = |wanted: &[Subject]| subjects.iter().any(|subject| wanted.contains(subject));
    let skips = [Approx::StepOver, Approx::Corrected].into_iter().any(|approx| asks.may_reuse_steps_by(approx));
    let from_cond =
        of_steps.flat_map(|question| &question.to_reuse).any(|approx| matches!(approx, Approx::FromCond { .. }));
    let is_inside = |unit: usize| {
        unit.checked_sub(1).and_then(|before| run.units.get(before)).map(|unit| unit.block)
            == run.units.get(unit).map(|unit| unit.block)
    };
    let cuts_blocks = asks.spans.iter().flat_map(|spans| &spans.cut).any(|span| {
        [span.units.start, span.units.end, span.since].into_iter().any(|unit| unit < run.units.len() && is_inside(unit))
    });
    [
        ("spans", asks.spans.is_some()),
        ("parts", cuts_blocks),
        ("trial", subjects.iter().any(|subject| matches!(subject, Subject::Trial { .. }))),
        ("from_cond", from_cond),
        ("velocity", measures(&[Subject::Velocity])),
        ("solver", skips || measures(&[Subject::SolverError])),
        ("block_outputs", measures(&[Subject::BlockOutputs])),
        ("time_embedding", measures(&[Subject::TimeEmbedding])),
        ("time_projection", measures(&[Subject::TimeProjection])),
        ("modulated_input", measures(&[Subject::ModulatedInput, Subject::FilteredInput])),
        ("filtered_input", measures(&[Subject::FilteredInput])),
    ]
    .into_iter()
    .filter_map(|(need, is_needed)| is_needed.then_some(need))
    .collect()
}

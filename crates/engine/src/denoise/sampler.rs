//! The sampling loop: ask about a step, predict every branch, combine them, advance the solver.

use std::time::Instant;

use candle_core::Tensor;
use navicache_control::cache::walk::{Begun, Session};
use navicache_control::cache::watch::Alarm;
use navicache_control::cache::{BranchRecord, Guarded, Run, SessionState, StepRecord, Subject, WalkError};
use navicache_control::guidance::Branch;
use navicache_control::resume::ResumeError;
use navicache_control::schedule::Schedule;
use navicache_control::solver::SolverKind;
use navicache_control::solver::skipping::{Stepper, StepperState};
use navicache_control::strip::{Ran, Strip};
use navicache_models::Branches;
use serde::{Deserialize, Serialize};

use super::arithmetic::Value;
use super::forward::Tensors;
use crate::draws::Draws;
use crate::machine::computing;
use crate::report::StepReport;
use crate::{Error, Result};

/// What a run left.
pub(crate) struct Sampled {
    /// The final latents. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    pub strip: Strip,
    pub steps: Vec<StepReport>,
    /// Every decision and measurement, as the walk recorded them.
    pub records: Vec<StepRecord>,
}

/// What is told of a finished step.
pub(crate) struct StepDone<'a> {
    pub index: usize,
    pub seconds: f64,
    pub strip: &'a Strip,
    /// The share of the step's work that was computed.
    pub share: f64,
    /// Alarms that guards have raised since the step before.
    pub alarms: &'a [Alarm],
}

/// Where denoising starts from.
pub(crate) struct Start {
    /// Noise, or latents from a file. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    /// Latent frames that are known: the model sees them in place of the first ones. // (1, channels, few, height,
    /// width)
    pub known: Option<Tensor>,
}

impl Start {
    /// Latents with the known frames in their place.
    pub fn shown(known: Option<&Tensor>, latents: &Tensor) -> Result<Tensor> {
        let Some(known) = known else { return Ok(latents.clone()) };
        let count = known.dim(2)?;
        let left = latents.dim(2)? - count;
        Ok(if left == 0 { known.clone() } else { Tensor::cat(&[known, &latents.narrow(2, count, left)?], 2)? })
    }

    /// The latents of frames that are not known; of what happens to the others nothing is seen.
    fn free(known: Option<&Tensor>, latents: &Tensor) -> Result<Tensor> {
        let count = known.map_or(Ok(0), |known| known.dim(2))?;
        let left = latents.dim(2)? - count;
        Ok(if left == 0 { latents.zeros_like()? } else { latents.narrow(2, count, left)? })
    }
}

/// What is denoised, whatever it starts from.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub denoiser: &'a dyn Branches,
    /// Of each step: the branches, which are the same at all, and the weights of their predictions.
    pub branches: &'a [Vec<(Branch, f64)>],
    pub run: &'a Run,
    pub solver: SolverKind,
    /// The run's steps, and where they end.
    pub schedule: &'a Schedule,
    pub draws: &'a Draws,
}

/// Denoises latents along the run's steps, one at a time. The policy lives as long as this.
pub(crate) struct Sampler<'a> {
    setup: Setup<'a>,
    known: Option<Tensor>,
    /// Spans in the policy's cut, and whether it learns what the solver finds out.
    spans: usize,
    learns_error: bool,
    stepper: Stepper<Tensor>,
    session: Session<Value, Tensor>,
    tensors: Tensors<'a>,
    /// Those that the next step starts from.
    latents: Tensor,
    strip: Strip,
    clocks: Vec<Clock>,
}

impl<'a> Sampler<'a> {
    /// From the first step on.
    pub fn begin(setup: Setup<'a>, start: Start, policy: Guarded) -> Self {
        let stepper = Stepper::new(setup.solver, setup.schedule.clone(), policy.asks().solver_keeps());
        let session = Session::new(setup.run.clone(), policy);
        Self::new(setup, start, stepper, session)
    }

    /// From where another sampler of the same run was. `start`: what the whole run starts from.
    pub fn resume(setup: Setup<'a>, start: Start, policy: Guarded, state: State) -> Result<Self, ResumeError> {
        let State { latents, session, stepper, clocks } = state;
        let shape = |latents: &Tensor| format!("{:?}", latents.dims());
        let (there, here) = (shape(&latents), shape(&start.latents));
        let differs = |what: &str, saved, here| ResumeError { what: what.to_string(), saved, here };
        if there != here {
            return Err(differs("latents", there, here));
        }
        let steps: Vec<usize> = session.records().iter().map(|record| record.step).collect();
        if !steps.iter().copied().eq(0..clocks.len()) {
            return Err(differs("steps", format!("{steps:?}"), format!("the first {}", clocks.len())));
        }
        let stepper = Stepper::resume(setup.solver, setup.schedule.clone(), policy.asks().solver_keeps(), stepper)?;
        let session = Session::resume(setup.run.clone(), policy, session)?;
        let mut strip = Strip::default();
        session.records().iter().for_each(|record| strip.push(ended(record)));
        Ok(Sampler { latents, strip, clocks, ..Self::new(setup, start, stepper, session) })
    }

    fn new(setup: Setup<'a>, start: Start, stepper: Stepper<Tensor>, session: Session<Value, Tensor>) -> Self {
        let Start { latents, known } = start;
        let tensors = Tensors::new(setup.denoiser, setup.run, setup.branches, setup.draws, latents.clone());
        let spans = session.asks().spans.as_ref().map_or(0, |spans| spans.cut.len());
        let learns_error = session.asks().learns(Subject::SolverError);
        let (strip, clocks) = (Strip::default(), Vec::with_capacity(setup.run.steps.len()));
        Sampler { setup, known, spans, learns_error, stepper, session, tensors, latents, strip, clocks }
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.setup.run.steps.len()
    }

    /// Steps that are done.
    pub fn done(&self) -> usize {
        self.clocks.len()
    }

    /// Does the next step, if there is one.
    pub fn step(&mut self) -> Result<Option<StepDone<'_>>> {
        let (step, begun) = (self.done(), Instant::now());
        let Some(branches) = self.setup.branches.get(step) else { return Ok(None) };
        let mut seconds = vec![0.0; branches.len()];
        let Sampler { known, learns_error, stepper, session, tensors, latents, .. } = self;
        tensors.set_step(step, Start::shown(known.as_ref(), latents)?);

        // All of it runs on a thread that computes: from there, work is shared at little cost.
        let (next, symbols) = computing(|| {
            // 1. Is it computed, approximated, or skipped?
            if let Begun::Skipped(skip) = session.begin_step(step, tensors)? {
                let next = stepper.skip(step, skip, tensors)?;
                return Ok((next, ended(session.end_step(tensors)?)));
            }

            // 2. The velocity of every branch, and of all together
            for ((branch, _), seconds) in branches.iter().zip(&mut seconds) {
                let begun = Instant::now();
                session.branch(*branch, tensors)?;
                *seconds = begun.elapsed().as_secs_f64();
            }
            let velocity = tensors.velocity()?;

            // 3. Advance, and learn
            let x = tensors.latents().clone();
            let sample = stepper.arrive(step, &x, &velocity, tensors)?;
            let error = if *learns_error { stepper.error(&x, tensors)? } else { None };
            let error = error.map(|error| Start::free(known.as_ref(), &error)).transpose()?;
            let sample = sample.map(|sample| Start::shown(known.as_ref(), &sample)).transpose()?;
            tensors.set_solver(velocity, sample, error);
            let symbols = ended(session.end_step(tensors)?);
            Ok::<_, Error>((stepper.leave(step, tensors)?, symbols))
        })?;
        let nothing_to_go_on_from = WalkError::NoStep { what: "the step after a skipped first one" };
        *latents = next.ok_or(nothing_to_go_on_from)?;
        tensors.watch(latents)?;
        // A GPU goes on by itself; without this, its time would be counted to the step after.
        latents.device().synchronize()?;

        let seconds_of_step = begun.elapsed().as_secs_f64();
        self.strip.push(symbols);
        self.clocks.push(Clock { step: seconds_of_step, branches: seconds });
        let (share, alarms) = self.session.records().last().map_or((1.0, &[][..]), |r| (r.share(), &r.alarms));
        Ok(Some(StepDone { index: step, seconds: seconds_of_step, strip: &self.strip, share, alarms }))
    }

    /// The clean latents as the last computed step predicts them; `None` before there is one.
    /// // (1, channels, latent frames, height, width)
    pub fn clean(&self) -> Result<Option<Tensor>> {
        self.stepper.clean().map(|clean| Start::shown(self.known.as_ref(), clean)).transpose()
    }

    /// So many steps are to be computed, in equivalents of whole ones: it holds from the next step on.
    pub fn budget(&mut self, budget: f64) {
        self.session.budget(self.done(), budget);
    }

    /// The budgets so far, each from a step on.
    pub fn budgets(&self) -> &[(usize, f64)] {
        self.session.budgets()
    }

    /// Of the steps that are done: seconds, and the share of the work that was computed.
    pub fn timed(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.clocks.iter().map(|clock| clock.step).zip(self.session.records().iter().map(StepRecord::share))
    }

    /// Where it stands between two steps. After the last, that is the final latents and what was recorded.
    pub fn save(&mut self) -> Result<State> {
        self.tensors.check()?;
        let session = self.session.save(&mut self.tensors)?;
        let clocks = self.clocks.clone();
        if self.done() < self.steps() {
            return Ok(State { latents: self.latents.clone(), session, stepper: self.stepper.save(), clocks });
        }
        let latents = Start::shown(self.known.as_ref(), &self.latents)?;
        Ok(State { latents, session: session.without_values(), stepper: StepperState::default(), clocks })
    }

    /// What it left, once all steps are done.
    pub fn finish(self) -> Result<Sampled> {
        let Sampler { setup: Setup { run, .. }, known, spans, session, mut tensors, latents, strip, clocks, .. } = self;
        let records = session.finish(&mut tensors)?;
        tensors.check()?;
        let step =
            |(record, clock): (&StepRecord, Clock)| StepReport::of(run, spans, record, clock.step, &clock.branches);
        let steps = records.iter().zip(clocks).map(step).collect();
        Ok(Sampled { latents: Start::shown(known.as_ref(), &latents)?, strip, steps, records })
    }
}

/// Wall-clock seconds of a step, and of each of its branches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Clock {
    pub step: f64,
    pub branches: Vec<f64>,
}

impl Clock {
    /// Whether it can be seconds.
    pub fn is_sane(&self) -> bool {
        self.branches.iter().chain([&self.step]).all(|&seconds| seconds.is_finite() && seconds >= 0.0)
    }
}

/// All that a sampler is between two steps, over tensors, or over their names in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State<T = Tensor> {
    pub latents: T,
    pub session: SessionState<Vec<T>>,
    pub stepper: StepperState<T>,
    /// Of the steps that are done.
    pub clocks: Vec<Clock>,
}

impl<T> State<T> {
    /// The same over something else; every tensor is handed over with a name of its own.
    pub fn map<U, E>(self, convert: &mut dyn FnMut(&str, T) -> Result<U, E>) -> Result<State<U>, E> {
        let latents = convert("latents", self.latents)?;
        let session = self.session.map(&mut |name, tensors: Vec<T>| {
            let named = tensors.into_iter().enumerate();
            named.map(|(part, tensor)| convert(&format!("{name}.{part}"), tensor)).collect::<Result<Vec<U>, E>>()
        })?;
        Ok(State { latents, session, stepper: self.stepper.map(convert)?, clocks: self.clocks })
    }
}

/// What ran of every branch.
fn ended(record: &StepRecord) -> Vec<Ran> {
    record.branches.iter().map(BranchRecord::ran).collect()
}

//! A step's tensors under the walk: what [`Session`](navicache_control::cache::walk::Session) asks of whoever holds
//! them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use navicache_control::cache::references::{Place, Refs};
use navicache_control::cache::walk::Forward;
use navicache_control::cache::{Form, Kept, Quantity, Run, Scope, Span, Spans, Subject, WalkError};
use navicache_control::guidance::Branch;
use navicache_control::solver::Linear;
use navicache_models::{Branches, Features, ForwardPass, Observed, Signal};

use super::arithmetic::{self, Value};
use super::spectrum::wiener;
use super::trial::trial;
use crate::draws::{Draws, OfSteps};
use crate::{Error, Result};

/// A branch's prediction.
struct Predicted {
    branch: Branch,
    /// The velocity. // (1, channels, latent frames, height, width)
    output: Tensor,
    /// What is measured and kept of it: the velocity, or the tokens after the last block.
    body: Tensor,
    /// Whether any of it was computed.
    computed: bool,
}

/// Steps after which latents are checked though no measurement is read: a GPU need not wait for every step, nor run on
/// in vain.
const WATCHED_MAX: usize = 8;

/// The tensors of one generation.
pub(super) struct Tensors<'a> {
    denoiser: &'a dyn Branches,
    run: &'a Run,
    /// Of each step: the branches and the weights of their predictions, in the order of the denoiser's conditions.
    branches: &'a [Vec<(Branch, f64)>],
    noise: OfSteps<'a>,
    /// The step under way.
    step: usize,
    /// The latents that the model sees.
    x: Tensor,
    /// What goes into a forward, as policies see it; made when it is asked for.
    entry: Option<Tensor>,
    predicted: Vec<Predicted>,
    /// What the solver found out about the step, and the guided velocity.
    solver: Option<OfSolver>,
    pass: Option<Pass>,
    /// Numbers that must be finite, with their steps; they are read along with the next measurements.
    watched: Vec<(usize, Tensor)>,
}

/// What the solver says of a computed step.
struct OfSolver {
    velocity: Tensor,
    /// The latents of the step as they are now known.
    sample: Tensor,
    error: Option<Tensor>,
}

/// A forward under way.
struct Pass {
    state: Box<dyn ForwardPass>,
    /// Features before the units that a later span's residual begins at.
    starts: BTreeMap<usize, Option<Features>>,
    /// Features after each block, with the block's last unit, where they are asked for.
    blocks: Option<Vec<(usize, Tensor)>>,
    /// The unit that runs next.
    next: usize,
    /// The span that was entered.
    span: Option<Entered>,
}

/// A span of a forward.
struct Entered {
    /// The unit that its residual begins at, and the features before it.
    since: usize,
    start: Features,
    /// What the span added, once that was asked for.
    residual: Option<Value>,
}

impl Entered {
    /// What the span added to the features, whose values are `after` it now.
    fn residual(&mut self, after: &Features) -> Result<Value> {
        if self.residual.is_none() {
            let difference = |(a, b): (Tensor, Tensor)| Ok((a - b)?);
            let pairs = values(after).into_iter().zip(values(&self.start));
            self.residual = Some(pairs.map(difference).collect::<Result<_>>()?);
        }
        Ok(self.residual.clone().unwrap_or_default())
    }
}

impl<'a> Tensors<'a> {
    pub fn new(
        denoiser: &'a dyn Branches,
        run: &'a Run,
        branches: &'a [Vec<(Branch, f64)>],
        draws: &'a Draws,
        x: Tensor,
    ) -> Self {
        Tensors {
            denoiser,
            run,
            branches,
            noise: draws.of_steps(),
            step: 0,
            x,
            entry: None,
            predicted: Vec::new(),
            solver: None,
            pass: None,
            watched: Vec::new(),
        }
    }

    /// Another step comes, of these latents.
    pub fn set_step(&mut self, step: usize, x: Tensor) {
        (self.step, self.x) = (step, x);
        (self.entry, self.solver) = (None, None);
        self.predicted.clear();
    }

    /// The guided velocity of the step's branches. // (1, channels, latent frames, height, width)
    pub fn velocity(&self) -> Result<Tensor> {
        let weight = |p: &Predicted| {
            self.branches[self.step].iter().find(|(branch, _)| *branch == p.branch).map_or(0.0, |(_, weight)| *weight)
        };
        let terms: Vec<(f64, &Tensor)> = self.predicted.iter().map(|p| (weight(p), &p.output)).collect();
        arithmetic::weighted(&terms)
    }

    /// What the solver found out: the guided velocity, the step's sample where it is another than the model saw, and
    /// the error of that. Latents that policies observe are the sample from now on.
    pub fn set_solver(&mut self, velocity: Tensor, sample: Option<Tensor>, error: Option<Tensor>) {
        if let (Some(sample), Observed::Latents) = (&sample, self.denoiser.anatomy().observed) {
            self.entry = Some(sample.clone());
        }
        self.solver = Some(OfSolver { velocity, sample: sample.unwrap_or_else(|| self.x.clone()), error });
    }

    /// The latents that the model sees.
    pub fn latents(&self) -> &Tensor {
        &self.x
    }

    /// Refuses latents that are not finite: at once where numbers are at hand, else along with the next measurements.
    pub fn watch(&mut self, latents: &Tensor) -> Result<()> {
        self.watched.push((self.step, arithmetic::mean_abs(latents)?));
        if latents.device().is_cpu() || self.watched.len() >= WATCHED_MAX { self.check() } else { Ok(()) }
    }

    /// Refuses what was watched and is not finite.
    pub fn check(&mut self) -> Result<()> {
        if self.watched.is_empty() { Ok(()) } else { self.read(Vec::new()).map(|_| ()) }
    }

    /// What goes into a forward, as policies see it: latents, or the embedded tokens.
    fn entry(&mut self) -> Result<Tensor> {
        if let Some(entry) = &self.entry {
            return Ok(entry.clone());
        }
        let entry = match self.denoiser.anatomy().observed {
            Observed::Tokens => self.denoiser.begin(0, &self.x, self.timestep(), None)?.features().video,
            Observed::Latents => self.x.clone(),
        };
        self.entry = Some(entry.clone());
        Ok(entry)
    }

    /// The predictions that a place's measurements are of: the branch's own; of a step, the first's, or, where tokens
    /// are observed, those of all branches that were computed.
    fn bodies(&self, place: Place) -> Vec<&Tensor> {
        let together = place.at.scope == Scope::Step && self.denoiser.anatomy().observed == Observed::Tokens;
        let is_of = |p: &&Predicted| if together { p.computed } else { p.branch == place.branch };
        self.predicted.iter().filter(is_of).map(|p| &p.body).collect()
    }

    /// The place of a branch among the conditions.
    fn index(&self, branch: Branch) -> Result<usize> {
        let known = || self.branches[self.step].iter().map(|(branch, _)| branch.name()).collect::<Vec<_>>().join(", ");
        let unknown = || WalkError::UnknownBranch { step: self.step, branch, known: known() }.into();
        self.branches[self.step].iter().position(|(known, _)| *known == branch).ok_or_else(unknown)
    }

    /// Begins a branch's forward.
    fn begun(&self, branch: Branch) -> Result<Box<dyn ForwardPass>> {
        Ok(self.denoiser.begin(self.index(branch)?, &self.x, self.timestep(), None)?)
    }

    fn timestep(&self) -> f64 {
        self.run.steps[self.step].timestep.0
    }

    /// The end of a forward whose blocks are done.
    fn end(&mut self, branch: Branch, state: Box<dyn ForwardPass>) -> Result<()> {
        let tokens = match self.denoiser.anatomy().observed {
            Observed::Latents => None,
            Observed::Tokens => Some(state.features().video),
        };
        let output = state.finish()?;
        let body = tokens.unwrap_or_else(|| output.clone());
        self.predicted.push(Predicted { branch, output, body, computed: true });
        Ok(())
    }
}

impl Forward for Tensors<'_> {
    type Value = Value;
    type Scalar = Tensor;
    type Error = Error;

    fn subject(&mut self, place: Place, subject: Subject) -> Result<Option<Value>> {
        let entry = match subject {
            Subject::Input | Subject::Residual => Some(self.entry()?),
            _ => None,
        };
        let of_solver = self.solver.as_ref();
        let entered = self.pass.as_mut().map(|pass| (pass.state.features(), pass));
        Ok(match (subject, entered) {
            (Subject::Input, _) => entry.map(|entry| vec![entry]),
            (Subject::Output, _) => Some(self.bodies(place).into_iter().cloned().collect()),
            (Subject::Residual, _) => {
                let residual = |body: &Tensor| {
                    Ok::<_, Error>(match &entry {
                        Some(entry) => (body - entry)?,
                        None => body.clone(),
                    })
                };
                Some(self.bodies(place).into_iter().map(residual).collect::<Result<_>>()?)
            }
            (Subject::CfgDifference, _) => match self.predicted.as_slice() {
                [cond, uncond, ..] => Some(vec![(&uncond.output - &cond.output)?]),
                _ => None,
            },
            (Subject::Velocity, _) => of_solver.map(|solver| vec![solver.velocity.clone()]),
            (Subject::Sample, _) => of_solver.map(|solver| vec![solver.sample.clone()]),
            (Subject::SolverError, _) => of_solver.and_then(|solver| Some(vec![solver.error.clone()?])),
            (Subject::Trial { frames, size }, _) => {
                Some(trial(self.denoiser, self.index(place.branch)?, &self.x, place.at, frames, size)?)
            }
            (Subject::TimeEmbedding, Some((_, pass))) => Some(vec![pass.state.signal(Signal::TimeEmbedding)?]),
            (Subject::TimeProjection, Some((_, pass))) => Some(vec![pass.state.signal(Signal::TimeProjection)?]),
            (Subject::ModulatedInput, Some((_, pass))) => Some(vec![pass.state.signal(Signal::ModulatedInput)?]),
            (Subject::FilteredInput, Some((_, pass))) => {
                let features = pass.state.signal(Signal::ModulatedInput)?;
                Some(vec![wiener(&features, grid(self.denoiser, &self.x)?, place.at.sigma.0)?])
            }
            (Subject::SpanResidual, Some((now, pass))) => match &mut pass.span {
                Some(span) => Some(span.residual(&now)?.into_iter().take(1).collect()),
                None => None,
            },
            (Subject::SpanOutput, Some((now, _))) => Some(vec![now.video]),
            (Subject::BlockOutputs, Some((_, pass))) => {
                let since = pass.span.as_ref().map_or(0, |span| span.since);
                let blocks = pass.blocks.iter().flatten().filter(|(unit, _)| *unit >= since);
                Some(blocks.map(|(_, video)| video.clone()).collect())
            }
            (_, None) => None,
        })
    }

    fn measure(
        &mut self,
        place: Place,
        quantity: Quantity,
        now: &Value,
        refs: Refs<'_, Value>,
    ) -> Result<Option<Tensor>> {
        arithmetic::measure(quantity.measure, now, &refs, place.at.timestep)
    }

    /// One transfer for everything, the numbers that must be finite among it.
    fn read(&mut self, mut scalars: Vec<Tensor>) -> Result<Vec<f64>> {
        let count = scalars.len();
        let (steps, watched): (Vec<usize>, Vec<Tensor>) = std::mem::take(&mut self.watched).into_iter().unzip();
        scalars.extend(watched);
        let mut values = Tensor::stack(&scalars, 0)?.to_vec1::<f64>()?;
        let broken = steps.into_iter().zip(values.drain(count..)).find(|(_, magnitude)| !magnitude.is_finite());
        match broken {
            Some((step, _)) => Err(Error::NotFinite { step: step + 1, steps: self.run.steps.len() }),
            None => Ok(values),
        }
    }

    fn compute(&mut self, branch: Branch) -> Result<()> {
        let mut state = self.begun(branch)?;
        (0..self.run.units.len()).try_for_each(|unit| state.run_unit(unit))?;
        self.end(branch, state)
    }

    fn begin(&mut self, branch: Branch, spans: &Spans) -> Result<()> {
        let state = self.begun(branch)?;
        let starts =
            spans.cut.iter().filter(|span| span.since < span.units.start).map(|span| (span.since, None)).collect();
        let wants_blocks = spans.question.to_learn.iter().any(|q| q.subject == Subject::BlockOutputs);
        self.pass = Some(Pass { state, starts, blocks: wants_blocks.then(Vec::new), next: 0, span: None });
        Ok(())
    }

    fn run_units(&mut self, end: usize) -> Result<()> {
        let Some(pass) = &mut self.pass else { return Ok(()) };
        for unit in pass.next..end {
            if let Some(start) = pass.starts.get_mut(&unit) {
                *start = Some(pass.state.features());
            }
            pass.state.run_unit(unit)?;
            let units = &self.run.units;
            let ends_block = units.get(unit + 1).is_none_or(|next| next.block != units[unit].block);
            if let Some(blocks) = pass.blocks.as_mut().filter(|_| ends_block) {
                blocks.push((unit, pass.state.features().video));
            }
        }
        pass.next = pass.next.max(end);
        Ok(())
    }

    fn enter(&mut self, span: &Span) -> Result<()> {
        let Some(pass) = &mut self.pass else { return Ok(()) };
        let before = pass.state.features();
        let start = pass.starts.get(&span.since).cloned().flatten().unwrap_or(before);
        pass.span = Some(Entered { since: span.since, start, residual: None });
        Ok(())
    }

    fn replace(&mut self, span: &Span, form: Form, value: Value) -> Result<()> {
        let Some(pass) = &mut self.pass else { return Ok(()) };
        let Some(Entered { start, .. }) = pass.span.take() else { return Ok(()) };
        let value = match form {
            Form::Output => value,
            Form::Residual => {
                let pairs = values(&start).into_iter().zip(value);
                pairs.map(|(a, b)| Ok((a + b)?)).collect::<Result<_>>()?
            }
        };
        pass.state.set_features(features(value, start));
        pass.next = span.units.end;
        Ok(())
    }

    fn finish(&mut self, branch: Branch) -> Result<()> {
        match self.pass.take() {
            Some(pass) => self.end(branch, pass.state),
            None => Ok(()),
        }
    }

    fn kept(&mut self, _: Branch, kept: Kept) -> Result<Value> {
        if let (Kept::Span(_, form), Some(pass)) = (kept, &mut self.pass) {
            let now = pass.state.features();
            return match (form, &mut pass.span) {
                (Form::Residual, Some(span)) => span.residual(&now),
                _ => Ok(values(&now)),
            };
        }
        let entry = self.entry()?;
        let (Some(newest), Some(first)) = (self.predicted.last(), self.predicted.first()) else {
            return Ok(Vec::new());
        };
        Ok(vec![match kept {
            Kept::Prediction(Form::Residual) => (&newest.body - entry)?,
            Kept::CfgDifference => (&newest.output - &first.output)?,
            Kept::Prediction(Form::Output) | Kept::Span(..) => newest.body.clone(),
        }])
    }

    fn sum(&mut self, terms: &[(f64, &Value)], split: Option<(f64, f64)>) -> Result<Value> {
        arithmetic::sum(terms, split)
    }

    fn approximate(&mut self, branch: Branch, kept: Kept, value: Value) -> Result<()> {
        let Some(value) = value.into_iter().next() else { return Ok(()) };
        if let (Kept::CfgDifference, Some(cond)) = (kept, self.predicted.first()) {
            let output = (&cond.output + &value)?; // a gap is one of velocities, whatever else is observed
            self.predicted.push(Predicted { branch, body: output.clone(), output, computed: false });
            return Ok(());
        }
        let body = match kept {
            Kept::Prediction(Form::Residual) => None,
            _ => Some(value.clone()),
        };
        let (body, output) = match self.denoiser.anatomy().observed {
            Observed::Latents => {
                let body = body.map_or_else(|| &self.x + &value, Ok)?;
                (body.clone(), body)
            }
            Observed::Tokens => {
                let mut state = self.begun(branch)?;
                let start = state.features();
                let body = body.map_or_else(|| &start.video + &value, Ok)?;
                state.set_features(features(vec![body.clone()], start));
                (body, state.finish()?)
            }
        };
        self.predicted.push(Predicted { branch, output, body, computed: false });
        Ok(())
    }
}

/// The solver adds tensors up.
impl Linear for Tensors<'_> {
    type Value = Tensor;
    type Error = Error;

    fn sum(&mut self, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
        arithmetic::weighted(terms)
    }

    fn noise(&mut self, step: usize) -> Result<Tensor> {
        self.noise.at(step, self.x.device())
    }
}

fn values(features: &Features) -> Value {
    [Some(features.video.clone()), features.text.clone()].into_iter().flatten().collect()
}

/// `start` gives what the value does not hold.
fn features(value: Value, start: Features) -> Features {
    let mut parts = value.into_iter();
    Features { video: parts.next().unwrap_or(start.video), text: parts.next().or(start.text) }
}

/// Tokens along time, height and width.
fn grid(denoiser: &dyn Branches, latents: &Tensor) -> Result<[usize; 3]> {
    let (_, _, frames, height, width) = latents.dims5()?;
    let [pf, ph, pw] = denoiser.anatomy().patch;
    Ok([frames.div_ceil(pf), height.div_ceil(ph), width.div_ceil(pw)])
}

//! One step under a policy: ask, measure, compute or make up — for the step, its branches and their spans.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Tensor;
use navicache_control::cache::{
    Approx, Asks, At, Decision, Form, Guarded, Kept, Quantity, Run, Scope, Seen, Span, Spans, Subject,
};
use navicache_control::guidance::Branch;
use navicache_control::strip::Ran;
use navicache_models::{Denoiser, Features, Observed, Signal};

use crate::machine::computing;
use crate::measure::{Meter, Place};
use crate::spectrum::{low_pass, wiener};
use crate::store::{Store, Value};
use crate::{Error, Result};

/// A branch of every step: its conditioning, and the weight of its prediction.
pub(crate) struct BranchInput<C> {
    pub branch: Branch,
    pub weight: f64,
    pub cond: C,
}

/// What became of one branch of one step.
pub(crate) struct Predicted {
    pub output: Tensor,
    /// What is measured and kept of it: the output itself, or the tokens after the last block.
    body: Tensor,
    pub ran: Ran,
    pub units_computed: usize,
    pub seconds: f64,
    /// Measured values by name.
    pub seen: BTreeMap<String, f64>,
}

/// A denoiser under a policy, for one generation.
pub(crate) struct Scoped<'a, D: Denoiser> {
    denoiser: &'a D,
    run: &'a Run,
    policy: Guarded,
    asks: Asks,
    meter: Meter,
    store: Store,
}

impl<'a, D: Denoiser> Scoped<'a, D> {
    pub fn new(denoiser: &'a D, run: &'a Run, policy: Guarded) -> Self {
        let asks = policy.asks().clone();
        Scoped { denoiser, run, meter: Meter::new(&asks), store: Store::new(&asks), asks, policy }
    }

    /// The prediction of every branch of a step, in order.
    pub fn step(&mut self, step: usize, x: &Tensor, inputs: &[BranchInput<D::Cond>]) -> Result<Vec<Predicted>> {
        let Some(first) = inputs.first() else { return Ok(Vec::new()) };
        let at = self.run.at(step, Scope::Step);

        // 1. The step as a whole, observed on its first branch; where branches differ in what is observed, on all together
        let entry = self.entry(x, at, first)?;
        let (mut seen, decision) = self.ask(at, first.branch, &mut |subject| match subject {
            Subject::Input => Ok(Some(vec![entry.clone()])),
            Subject::Trial { frames, size } => trial(self.denoiser, x, at, &first.cond, frames, size).map(Some),
            _ => Ok(None),
        })?;

        // 2. Its branches
        let mut predicted: Vec<Predicted> = Vec::with_capacity(inputs.len());
        for input in inputs {
            let begun = Instant::now();
            let cond = predicted.first();
            let done = match decision {
                Decision::Reuse(Approx::FromCond { .. }) if predicted.is_empty() => self.whole(x, at, input)?,
                Decision::Reuse(approx) => self.made_up(at, input, approx, x, cond)?,
                Decision::Compute => self.branch(step, x, &entry, input, cond)?,
            };
            // A GPU goes on by itself; without waiting, its time would be counted to whoever reads a number next.
            done.output.device().synchronize()?;
            predicted.push(Predicted { seconds: begun.elapsed().as_secs_f64(), ..done });
        }

        // 3. What there is to learn
        if decision == Decision::Compute {
            seen.extend(self.learn_of_step(at, &entry, inputs, &predicted)?.iter());
        }
        predicted[0].note(&seen);
        let is_full = |p: &Predicted| decision == Decision::Compute && p.ran == Ran::Computed;
        let full = inputs.iter().zip(&predicted).filter(|(_, p)| is_full(p)).map(|(input, _)| input.branch);
        let full: Vec<Branch> = full.collect();
        self.meter.close(&full, full.len() == inputs.len(), at.timestep);
        Ok(predicted)
    }

    /// One branch of a step that is not reused as a whole.
    fn branch(
        &mut self,
        step: usize,
        x: &Tensor,
        entry: &Tensor,
        input: &BranchInput<D::Cond>,
        cond: Option<&Predicted>,
    ) -> Result<Predicted> {
        let branch = input.branch;
        let at = self.run.at(step, Scope::Branch(branch));
        let (seen, decision) =
            self.ask(at, branch, &mut |subject| Ok((subject == Subject::Input).then(|| vec![entry.clone()])))?;
        let mut done = match decision {
            Decision::Reuse(approx) => self.made_up(at, input, approx, x, cond)?,
            Decision::Compute => match self.asks.spans.clone() {
                None => self.whole(x, at, input)?,
                Some(spans) => self.spans(step, x, input, &spans)?,
            },
        };
        if done.ran != Ran::Reused {
            self.keep_prediction(branch, entry, &done, cond)?;
            let learn = self.asks.branch.as_ref().map(|q| q.to_learn.clone()).unwrap_or_default();
            let learned = self
                .meter
                .see(place(at, branch), &learn, &mut |subject| of_predictions(subject, entry, &[&done.body]))?;
            self.policy.computed(at, &learned);
            done.note(&learned);
        }
        done.note(&seen);
        Ok(done)
    }

    /// The forward of a branch, span by span.
    fn spans(&mut self, step: usize, x: &Tensor, input: &BranchInput<D::Cond>, spans: &Spans) -> Result<Predicted> {
        let branch = input.branch;
        let at = |span| self.run.at(step, Scope::Span { branch, span });
        let denoiser = self.denoiser;
        let mut state = denoiser.begin(x, self.run.steps[step].timestep.0, &input.cond)?;
        let mut pass = Pass { starts: starts_needed(spans), blocks: wants_blocks(spans).then(Vec::new), next: 0 };
        let mut computed = 0;
        let mut seen_by_name = BTreeMap::new();
        for (index, span) in spans.cut.iter().enumerate() {
            computed += self.run_units(&mut state, &mut pass, span.units.start)?;
            let before = denoiser.features(&state);
            let (mut seen, decision) = match span.reusable {
                false => (Seen::default(), Decision::Compute),
                true => self.ask(at(index), branch, &mut |subject| match subject {
                    Subject::TimeEmbedding => Ok(Some(vec![denoiser.signal(Signal::TimeEmbedding, &state)?])),
                    Subject::TimeProjection => Ok(Some(vec![denoiser.signal(Signal::TimeProjection, &state)?])),
                    Subject::ModulatedInput => Ok(Some(vec![denoiser.signal(Signal::ModulatedInput, &state)?])),
                    Subject::FilteredInput => {
                        let features = denoiser.signal(Signal::ModulatedInput, &state)?;
                        Ok(Some(vec![wiener(&features, grid(denoiser, x)?, at(index).sigma.0)?]))
                    }
                    _ => Ok(None),
                })?,
            };
            let start = pass.starts.get(&span.since).cloned().flatten().unwrap_or(before);
            match decision {
                Decision::Reuse(approx) => {
                    let made_up = self.recall(at(index), branch, approx)?;
                    let value = match approx.kept(at(index).scope) {
                        Kept::Span(_, Form::Output) => made_up,
                        _ => add(&values(&start), &made_up)?,
                    };
                    denoiser.set_features(&mut state, features(value, start));
                    pass.next = span.units.end;
                }
                Decision::Compute => {
                    computed += self.run_units(&mut state, &mut pass, span.units.end)?;
                    let learned =
                        self.learn_of_span(at(index), branch, span, &start, &denoiser.features(&state), &pass)?;
                    seen.extend(learned.iter());
                    self.policy.computed(at(index), &learned);
                }
            }
            let label = if spans.cut.len() > 1 { format!("[{index}]") } else { String::new() };
            seen_by_name.extend(seen.iter().map(|(quantity, value)| (quantity.name() + &label, value)));
        }
        let units = self.run.units.len();
        computed += self.run_units(&mut state, &mut pass, units)?;
        let ran = match computed {
            0 => Ran::Reused,
            all if all == units => Ran::Computed,
            _ => Ran::Mixed,
        };
        Ok(Predicted { seen: seen_by_name, ..self.finished(state, ran, computed)? })
    }

    /// What goes into a forward, as policies see it. Where none has a question about a step or a branch nobody looks, and nothing is embedded
    /// for it.
    fn entry(&self, x: &Tensor, at: At, input: &BranchInput<D::Cond>) -> Result<Tensor> {
        let looked_at = self.asks.step.is_some() || self.asks.branch.is_some();
        Ok(match self.denoiser.observed() {
            Observed::Tokens if looked_at => {
                let state = self.denoiser.begin(x, at.timestep.0, &input.cond)?;
                self.denoiser.features(&state).video
            }
            Observed::Latents | Observed::Tokens => x.clone(),
        })
    }

    /// A forward in full, without questions inside.
    fn whole(&self, x: &Tensor, at: At, input: &BranchInput<D::Cond>) -> Result<Predicted> {
        let (denoiser, units) = (self.denoiser, self.run.units.len());
        let state = computing(|| -> navicache_models::Result<D::State> {
            let mut state = denoiser.begin(x, at.timestep.0, &input.cond)?;
            (0..units).try_for_each(|unit| denoiser.run_unit(unit, &mut state))?;
            Ok(state)
        })?;
        self.finished(state, Ran::Computed, units)
    }

    /// The end of a forward whose blocks are done.
    fn finished(&self, state: D::State, ran: Ran, units_computed: usize) -> Result<Predicted> {
        let tokens = match self.denoiser.observed() {
            Observed::Latents => None,
            Observed::Tokens => Some(self.denoiser.features(&state).video),
        };
        let output = self.denoiser.finish(state)?;
        Ok(Predicted::new(tokens.unwrap_or_else(|| output.clone()), output, ran, units_computed))
    }

    /// Runs the units up to one; says how many.
    fn run_units(&self, state: &mut D::State, pass: &mut Pass, to: usize) -> Result<usize> {
        let from = pass.next;
        for unit in from..to {
            if let Some(start) = pass.starts.get_mut(&unit) {
                *start = Some(self.denoiser.features(state));
            }
            let denoiser = self.denoiser;
            computing(|| denoiser.run_unit(unit, state))?;
            let ends_block = self.run.units.get(unit + 1).is_none_or(|next| next.block != self.run.units[unit].block);
            if let Some(blocks) = pass.blocks.as_mut().filter(|_| ends_block) {
                blocks.push((unit, self.denoiser.features(state).video));
            }
        }
        pass.next = to.max(from);
        Ok(to.saturating_sub(from))
    }

    /// Keeps what a computed span did, and measures it.
    fn learn_of_span(
        &mut self,
        at: At,
        branch: Branch,
        span: &Span,
        start: &Features,
        after: &Features,
        pass: &Pass,
    ) -> Result<Seen> {
        let Scope::Span { span: index, .. } = at.scope else { return Ok(Seen::default()) };
        let (residual_kept, output_kept) = (Kept::Span(index, Form::Residual), Kept::Span(index, Form::Output));
        let mut residual = None;
        if self.store.wants(residual_kept) {
            let value = subtract(&values(after), &values(start))?;
            residual = value.first().cloned();
            self.store.keep(branch, residual_kept, value);
        }
        if self.store.wants(output_kept) {
            self.store.keep(branch, output_kept, values(after));
        }
        let Some(spans) = self.asks.spans.as_ref().filter(|_| span.watched) else { return Ok(Seen::default()) };
        self.meter.see(place(at, branch), &spans.question.to_learn, &mut |subject| {
            Ok(match subject {
                Subject::SpanResidual => Some(vec![match residual.clone() {
                    Some(residual) => residual,
                    None => (&after.video - &start.video)?,
                }]),
                Subject::SpanOutput => Some(vec![after.video.clone()]),
                Subject::BlockOutputs => pass.blocks.as_ref().map(|blocks| {
                    blocks.iter().filter(|(unit, _)| *unit >= span.since).map(|(_, video)| video.clone()).collect()
                }),
                _ => None,
            })
        })
    }

    /// What the policy learns of a step that was not reused as a whole.
    fn learn_of_step(
        &mut self,
        at: At,
        entry: &Tensor,
        inputs: &[BranchInput<D::Cond>],
        predicted: &[Predicted],
    ) -> Result<Seen> {
        let Some(question) = &self.asks.step else { return Ok(Seen::default()) };
        let (gaps, others): (Vec<Quantity>, Vec<Quantity>) =
            question.to_learn.iter().partition(|q| q.subject == Subject::Gap);
        // Tokens are observed on all branches together, latents on the first.
        let together = if self.denoiser.observed() == Observed::Tokens { predicted.len() } else { 1 };
        let computed = |p: &&Predicted| together == 1 || p.ran != Ran::Reused;
        let bodies: Vec<&Tensor> = predicted[..together].iter().filter(computed).map(|p| &p.body).collect();
        let mut learned = self
            .meter
            .see(place(at, inputs[0].branch), &others, &mut |subject| of_predictions(subject, entry, &bodies))?;
        if predicted.len() > 1 && predicted.iter().all(|p| p.ran != Ran::Reused) {
            let gap = (&predicted[1].output - &predicted[0].output)?;
            let seen = self.meter.see(place(at, inputs[1].branch), &gaps, &mut |_| Ok(Some(vec![gap.clone()])))?;
            learned.extend(seen.iter());
        }
        self.policy.computed(at, &learned);
        Ok(learned)
    }

    /// Measures what a question needs, and puts it.
    fn ask(
        &mut self,
        at: At,
        branch: Branch,
        value_of: &mut dyn FnMut(Subject) -> Result<Option<Value>>,
    ) -> Result<(Seen, Decision)> {
        let seen = match self.asks.question(at.scope) {
            Some(question) => self.meter.see(place(at, branch), &question.to_decide, value_of)?,
            None => return Ok((Seen::default(), Decision::Compute)),
        };
        let decision = self.policy.decide(at, &seen);
        Ok((seen, decision))
    }

    /// A prediction that is not computed.
    fn made_up(
        &mut self,
        at: At,
        input: &BranchInput<D::Cond>,
        approx: Approx,
        x: &Tensor,
        cond: Option<&Predicted>,
    ) -> Result<Predicted> {
        let value = self.recall(at, input.branch, approx)?;
        let onto = |base: &Tensor| Ok::<_, Error>((base + &value[0])?);
        if let (Kept::Gap, Some(cond)) = (approx.kept(at.scope), cond) {
            let output = onto(&cond.output)?; // a gap is one of velocities, whatever else is observed
            return Ok(Predicted::new(output.clone(), output, Ran::Reused, 0));
        }
        let state = match self.denoiser.observed() {
            Observed::Latents => None,
            Observed::Tokens => Some(self.denoiser.begin(x, at.timestep.0, &input.cond)?),
        };
        let body = match (approx.kept(at.scope), &state) {
            (Kept::Prediction(Form::Residual), None) => onto(x)?,
            (Kept::Prediction(Form::Residual), Some(state)) => onto(&self.denoiser.features(state).video)?,
            _ => value[0].clone(),
        };
        let output = match state {
            None => body.clone(),
            Some(mut state) => {
                let start = self.denoiser.features(&state);
                self.denoiser.set_features(&mut state, features(vec![body.clone()], start));
                self.denoiser.finish(state)?
            }
        };
        Ok(Predicted::new(body, output, Ran::Reused, 0))
    }

    fn recall(&self, at: At, branch: Branch, approx: Approx) -> Result<Value> {
        let recipe = self.policy.recipe(branch, at, approx);
        self.store.make_up(&recipe)?.ok_or_else(|| Error::Request {
            what: "cache policy",
            found: format!("reuses {:?} of branch {} at step {}", recipe.kept, branch.name(), at.step),
            expected: "nothing was kept in that form; a policy may reuse only what it asks to keep".to_string(),
        })
    }

    fn keep_prediction(
        &mut self,
        branch: Branch,
        entry: &Tensor,
        done: &Predicted,
        cond: Option<&Predicted>,
    ) -> Result<()> {
        let Predicted { body, output, .. } = done;
        if self.store.wants(Kept::Prediction(Form::Residual)) {
            self.store.keep(branch, Kept::Prediction(Form::Residual), vec![(body - entry)?]);
        }
        if self.store.wants(Kept::Prediction(Form::Output)) {
            self.store.keep(branch, Kept::Prediction(Form::Output), vec![body.clone()]);
        }
        // A difference to something made up is no difference of two predictions.
        if let Some(cond) = cond.filter(|p| p.ran != Ran::Reused && self.store.wants(Kept::Gap)) {
            self.store.keep(branch, Kept::Gap, vec![(output - &cond.output)?]);
        }
        Ok(())
    }
}

/// What is measured of branches that were predicted.
fn of_predictions(subject: Subject, entry: &Tensor, bodies: &[&Tensor]) -> Result<Option<Value>> {
    Ok(match subject {
        Subject::Input => Some(vec![entry.clone()]),
        Subject::Output => Some(bodies.iter().map(|&body| body.clone()).collect()),
        Subject::Residual => Some(bodies.iter().map(|&body| Ok((body - entry)?)).collect::<Result<_>>()?),
        _ => None,
    })
}

/// A forward under way.
struct Pass {
    /// Features before the units that a later span's residual begins at.
    starts: BTreeMap<usize, Option<Features>>,
    /// Features after each block, with the block's last unit, where they are asked for.
    blocks: Option<Vec<(usize, Tensor)>>,
    /// The unit that runs next.
    next: usize,
}

fn starts_needed(spans: &Spans) -> BTreeMap<usize, Option<Features>> {
    spans.cut.iter().filter(|span| span.since < span.units.start).map(|span| (span.since, None)).collect()
}

fn wants_blocks(spans: &Spans) -> bool {
    spans.question.to_learn.iter().any(|q| q.subject == Subject::BlockOutputs)
}

impl Predicted {
    fn new(body: Tensor, output: Tensor, ran: Ran, units_computed: usize) -> Self {
        Predicted { output, body, ran, units_computed, seconds: 0.0, seen: BTreeMap::new() }
    }

    fn note(&mut self, seen: &Seen) {
        self.seen.extend(seen.iter().map(|(quantity, value)| (quantity.name(), value)));
    }
}

fn place(at: At, branch: Branch) -> Place {
    let span = match at.scope {
        Scope::Span { span, .. } => Some(span),
        Scope::Step | Scope::Branch(_) => None,
    };
    Place { branch, span, step: at.step, timestep: at.timestep }
}

fn values(features: &Features) -> Value {
    [Some(features.video.clone()), features.text.clone()].into_iter().flatten().collect()
}

/// `start` gives what the value does not hold.
fn features(value: Value, start: Features) -> Features {
    let mut parts = value.into_iter();
    Features { video: parts.next().unwrap_or(start.video), text: parts.next().or(start.text) }
}

fn add(a: &Value, b: &Value) -> Result<Value> {
    a.iter().zip(b).map(|(a, b)| Ok((a + b)?)).collect()
}

fn subtract(a: &Value, b: &Value) -> Result<Value> {
    a.iter().zip(b).map(|(a, b)| Ok((a - b)?)).collect()
}

/// Tokens along time, height and width.
fn grid<D: Denoiser>(denoiser: &D, latents: &Tensor) -> Result<[usize; 3]> {
    let (_, _, frames, height, width) = latents.dims5()?;
    let [pf, ph, pw] = denoiser.patch();
    Ok([frames.div_ceil(pf), height.div_ceil(ph), width.div_ceil(pw)])
}

/// The low frequencies of the prediction for latents of which every `frames`-th frame and every `size`-th row and column are taken.
///
/// Values are picked, not averaged: a mean of noise has less noise in it than the timestep says.
fn trial<D: Denoiser>(denoiser: &D, x: &Tensor, at: At, cond: &D::Cond, frames: usize, size: usize) -> Result<Value> {
    let [pf, ph, pw] = denoiser.patch();
    let mut thin = x.clone();
    let mut pick = |axis: usize, factor: usize, patch: usize| -> Result<Tensor> {
        let n = thin.dim(axis)?;
        let count = n.div_ceil(factor).next_multiple_of(patch).min(n);
        let stay = Tensor::new((0..count).map(|i| (i * n / count) as u32).collect::<Vec<_>>(), x.device())?;
        thin = thin.index_select(&stay, axis)?;
        Ok(stay)
    };
    let stay = [pick(2, frames, pf)?, pick(3, size, ph)?, pick(4, size, pw)?];
    let cond = denoiser.thinned(cond, &stay)?;
    Ok(vec![low_pass(&denoiser.forward(&thin, at.timestep.0, &cond)?)?])
}

//! Traces: what a run that computed everything measured, so that any method can be played against it without the model.
//!
//! A trace is a list of steps; a step holds named numbers for each branch. Names are those of [`Quantity`], with the
//! index of a watched span in brackets: `0` is the first block, `1` the middle one, `2` all blocks (the residual from
//! before the first to after the last).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use navicache_control::cache::promise::Extent;
use navicache_control::cache::{
    Asks, At, Decision, Guard, Measure, Measurements, Method, Part, Policy, Quantity, Question, Run, Span, Spans,
    Subject, Unit,
};
use navicache_control::guidance::Branch;
use navicache_control::schedule::{Sigma, Step, Timestep};
use navicache_control::solver::SolverKind;

/// Version of the format. It grows when a field changes its meaning or goes away.
pub const VERSION: u32 = 2;
/// Earlier steps that distances of features are recorded to, if nothing else is asked for; those of latents to three
/// times as many.
pub const LAGS: usize = 8;

/// Most lags of a trace: more than there are steps.
pub const LAGS_MAX: usize = 10_000;

/// Latents are small beside features, and lines through them reach far back: they get so many times the lags.
const LATENTS_FACTOR: usize = 3;

/// The watched span that is the first block.
pub(crate) const FIRST_BLOCK: usize = 0;
/// The watched span that is the middle block.
pub(crate) const MIDDLE_BLOCK: usize = 1;
/// The watched span that is the whole stack.
pub(crate) const ALL_BLOCKS: usize = 2;

/// What was recorded of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What was run.
    pub header: Header,
    /// Its steps, in order.
    pub steps: Vec<TraceStep>,
}

/// What was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub trace: u32,
    /// Name or path of the model.
    pub model: String,
    /// The family of models that presets are looked up by.
    pub family: String,
    /// The prompt.
    pub prompt: String,
    /// The seed.
    pub seed: u64,
    /// The branches of every step, in order.
    pub branches: Vec<Branch>,
    /// The blocks of the model, from the first to the last.
    pub stacks: Vec<Stack>,
    /// Earlier steps that distances of features are recorded to.
    pub lags: usize,
    /// Steps at which another transformer took over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<usize>,
    /// How the video was made, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
}

/// What a run depends on that its steps do not show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The solver.
    pub solver: SolverKind,
    /// Guidance scale.
    pub guidance: f64,
    /// Shift of the noise schedule, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// How large the video is, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
}

/// Blocks in a row that have the same units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// How many.
    pub blocks: usize,
    /// Units of each.
    pub parts: Vec<Part>,
}

impl Stack {
    /// The stacks of a model's units.
    pub fn of(units: &[Unit]) -> Vec<Stack> {
        let mut stacks: Vec<Stack> = Vec::new();
        for block in units.chunk_by(|a, b| a.block == b.block) {
            let parts: Vec<Part> = block.iter().map(|unit| unit.part).collect();
            match stacks.last_mut().filter(|last| last.parts == parts) {
                Some(last) => last.blocks += 1,
                None => stacks.push(Stack { blocks: 1, parts }),
            }
        }
        stacks
    }

    /// The units of a model's stacks, in the order they run.
    pub fn units(stacks: &[Stack]) -> Vec<Unit> {
        let blocks = stacks.iter().flat_map(|stack| std::iter::repeat_n(&stack.parts, stack.blocks));
        blocks.enumerate().flat_map(|(block, parts)| parts.iter().map(move |&part| Unit { block, part })).collect()
    }
}

/// One step of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceStep {
    /// Index, from 0.
    pub step: usize,
    /// The timestep that the model is conditioned on.
    pub timestep: f64,
    /// The noise level.
    pub sigma: f64,
    /// Measured values by name, by branch.
    pub seen: BTreeMap<Branch, BTreeMap<String, f64>>,
}

impl Trace {
    /// The run that was recorded.
    pub fn run(&self) -> Run {
        let step = |s: &TraceStep| Step { timestep: Timestep(s.timestep), sigma: Sigma(s.sigma) };
        Run {
            family: self.header.family.clone(),
            steps: self.steps.iter().map(step).collect(),
            branches: self.header.branches.clone(),
            units: Stack::units(&self.header.stacks),
            segments: self.header.segments.clone(),
        }
    }

    /// A quantity of a branch at a step. `visited` is the step that the subject was looked at before, `computed` are
    /// those (newest first) at which it was computed in full. `None` where there is no reference point, or nothing was
    /// recorded.
    pub fn value(
        &self,
        step: usize,
        branch: Branch,
        span: Option<usize>,
        quantity: Quantity,
        visited: Option<usize>,
        computed: &[usize],
    ) -> Option<f64> {
        let at = |step| Recorded { trace: self, step, branch, span, subject: quantity.subject };
        let now = at(step);
        match quantity.measure {
            Measure::Magnitude | Measure::Norm => now.get(quantity.measure),
            // Recorded since the step before, which is the one visited before unless the subject was left out there.
            Measure::TokenRatioSinceVisit => now.get(quantity.measure).filter(|_| visited == step.checked_sub(1)),
            Measure::DistanceSinceVisit => {
                let recorded = || now.get(quantity.measure).filter(|_| visited == step.checked_sub(1));
                now.distance(visited?).or_else(recorded)
            }
            Measure::ChangeSinceVisit => now.change(visited?),
            Measure::RelativeChangeSinceVisit => Some(now.change(visited?)? / at(visited?).get(Measure::Magnitude)?),
            Measure::ChangeSinceCompute => now.change(*computed.first()?),
            Measure::RelativeChangeSinceCompute => {
                let last = *computed.first()?;
                Some(now.change(last)? / at(last).get(Measure::Magnitude)?)
            }
            Measure::CosineSinceCompute => {
                let last = *computed.first()?;
                Some(now.product(last)? / now.get(Measure::Norm)? / at(last).get(Measure::Norm)?)
            }
            Measure::AnchorPosition => {
                let (last, earlier) = (*computed.first()?, *computed.get(1)?);
                Some(now.change(earlier)? / at(last).change(earlier)?)
            }
            Measure::LineError => {
                let anchors = computed.get(..2)?;
                let timestep = |step: usize| self.steps[step].timestep;
                let along = (timestep(step) - timestep(anchors[0])) / (timestep(anchors[0]) - timestep(anchors[1]));
                let weights = [1.0 + along, -along];
                Some(now.miss(anchors, &weights)? / now.get(Measure::Norm)?)
            }
            Measure::Lag(lag) => now.change(step.checked_sub(lag)?),
            Measure::LagDistance(lag) => now.distance(step.checked_sub(lag)?),
        }
    }

    /// Mean absolute error of a weighted sum of the guided velocities of `anchors` at a step, in f64 units of the
    /// velocity. The steps may lie on both sides. `None` where too little was recorded.
    pub fn velocity_miss(&self, step: usize, anchors: &[usize], weights: &[f64]) -> Option<f64> {
        let branch = *self.header.branches.first()?;
        let now = Recorded { trace: self, step, branch, span: None, subject: Subject::Velocity };
        // Distances are Euclidean; the ratio of both sizes of the velocity itself makes them means.
        Some(now.miss_of_sum(anchors, weights)? * now.get(Measure::Magnitude)? / now.get(Measure::Norm)?)
    }

    /// Euclidean error of a weighted sum of a subject's earlier values, relative to the prediction: `||a_i - sum w_j
    /// a_j|| / ||o_i||`.
    pub fn relative_miss(
        &self,
        step: usize,
        branch: Branch,
        subject: Subject,
        anchors: &[usize],
        weights: &[f64],
    ) -> Option<f64> {
        let now = Recorded { trace: self, step, branch, span: None, subject };
        let output = Recorded { subject: Subject::Output, ..now };
        let is_later = anchors.iter().any(|&anchor| anchor > step); // then there is no holding of the newest value
        let miss = if is_later { now.miss_of_sum(anchors, weights) } else { now.miss(anchors, weights) };
        Some(miss? / output.get(Measure::Norm)?)
    }
}

/// A subject at a step of a trace.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    trace: &'a Trace,
    step: usize,
    branch: Branch,
    span: Option<usize>,
    subject: Subject,
}

impl Recorded<'_> {
    fn get(&self, measure: Measure) -> Option<f64> {
        let name = named(self.subject.by(measure), self.span);
        let seen = &self.trace.steps.get(self.step)?.seen;
        // The difference is of both branches: it stands under the first, and in older files under the other.
        let both = || seen.values().find_map(|seen| seen.get(&name));
        let found = if self.subject == Subject::CfgDifference { both() } else { seen.get(&self.branch)?.get(&name) };
        found.copied()
    }

    /// Mean absolute change since a step. Beyond what was recorded it is taken to grow on in proportion.
    fn change(&self, since: usize) -> Option<f64> {
        self.lagged(since, Measure::Lag)
    }

    /// Euclidean distance to the value at a step, likewise.
    fn distance(&self, since: usize) -> Option<f64> {
        self.lagged(since, Measure::LagDistance)
    }

    fn lagged(&self, since: usize, measure: impl Fn(usize) -> Measure) -> Option<f64> {
        let lag = self.step - since;
        if lag == 0 {
            return Some(0.0);
        }
        let recorded = |at: usize| Some(self.get(measure(at))? * lag as f64 / at as f64);
        (1..=lag).rev().find_map(recorded)
    }

    /// Inner product with the value at another step, from norms and the distance; `None` beyond what was recorded.
    fn product(&self, other: usize) -> Option<f64> {
        let at = |step: usize| Recorded { step, ..*self };
        let (newer, older) = (self.step.max(other), self.step.min(other));
        let square = |x: f64| x * x;
        let distance = if newer == older { 0.0 } else { at(newer).get(Measure::LagDistance(newer - older))? };
        let norms = square(self.get(Measure::Norm)?) + square(at(other).get(Measure::Norm)?);
        Some((norms - square(distance)) / 2.0)
    }

    /// `||a_i - sum w_j a_j||`. Beyond what was recorded it is that of the newest value held: no forecast is trusted
    /// that far.
    fn miss(&self, anchors: &[usize], weights: &[f64]) -> Option<f64> {
        self.miss_of_sum(anchors, weights).or_else(|| self.distance(*anchors.first()?))
    }

    /// The same from inner products.
    fn miss_of_sum(&self, anchors: &[usize], weights: &[f64]) -> Option<f64> {
        let mut square = self.get(Measure::Norm)?.powi(2);
        for (&j, wj) in anchors.iter().zip(weights) {
            square -= 2.0 * wj * self.product(j)?;
            for (&k, wk) in anchors.iter().zip(weights) {
                square += wj * wk * Recorded { step: j, ..*self }.product(k)?;
            }
        }
        Some(square.max(0.0).sqrt())
    }
}

/// Name in a trace.
pub fn named(quantity: Quantity, span: Option<usize>) -> String {
    match span {
        Some(span) => format!("{}[{span}]", quantity.name()),
        None => quantity.name(),
    }
}

/// Computes everything and looks at everything: the method behind a trace.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// Earlier steps that distances of features are recorded to.
    pub lags: usize,
    /// The trial pass that is recorded too: one latent frame, and one row and column, of so many.
    pub trial: (usize, usize),
    /// What of a run is looked at.
    pub looks: Looks,
}

/// What of a run a recorder looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// Steps, branches, the blocks inside, and trial passes.
    Everywhere,
    /// Steps and their branches: what can be seen of a model from outside.
    AtSteps,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder { lags: LAGS, trial: (2, 4), looks: Looks::Everywhere }
    }
}

impl Method for Recorder {
    fn name(&self) -> &str {
        "trace"
    }

    fn caches(&self) -> bool {
        false
    }

    fn guard(&self, _: usize) -> Guard {
        Guard::NONE
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        Box::new(Recording(self.asks(run)))
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({})
    }
}

impl Recorder {
    fn asks(&self, run: &Run) -> Asks {
        let lags_of = |subject: Subject| match subject {
            Subject::SpanResidual | Subject::BlockOutputs => self.lags,
            _ => self.lags * LATENTS_FACTOR,
        };
        let everything = |subject: Subject| {
            let lags = (1..=lags_of(subject)).flat_map(|lag| [Measure::Lag(lag), Measure::LagDistance(lag)]);
            [Measure::Magnitude, Measure::Norm].into_iter().chain(lags).map(move |m| subject.by(m)).collect::<Vec<_>>()
        };
        let changes = |subject: Subject| [Measure::Magnitude, Measure::Lag(1)].map(|measure| subject.by(measure));
        let blocks = run.block_count();
        let block = |index: usize| run.blocks(index..index + 1);
        let rest = (blocks / 2 + 1).min(blocks);
        let spans = Spans {
            cut: vec![
                Span::of(block(0)).watched(),
                Span::probe(block((blocks / 2).max(1))),
                Span { since: 0, ..Span::probe(run.blocks(rest.max(2).min(blocks)..blocks)) },
            ],
            question: Question {
                to_decide: [
                    changes(Subject::TimeEmbedding),
                    changes(Subject::TimeProjection),
                    changes(Subject::ModulatedInput),
                    changes(Subject::FilteredInput),
                ]
                .concat(),
                to_learn: [
                    everything(Subject::SpanResidual),
                    vec![Subject::SpanResidual.by(Measure::TokenRatioSinceVisit)],
                    changes(Subject::SpanOutput).to_vec(),
                    everything(Subject::BlockOutputs).into_iter().filter(|q| !is_distance(q.measure)).collect(),
                ]
                .concat(),
                to_reuse: vec![],
            },
        };
        let trial = Subject::Trial { frames: self.trial.0, size: self.trial.1 };
        let (trial, spans) = match self.looks {
            Looks::Everywhere => (vec![trial.by(Measure::DistanceSinceVisit)], Some(spans)),
            Looks::AtSteps => (vec![], None),
        };
        let step = Question {
            to_decide: trial,
            to_learn: [everything(Subject::CfgDifference), everything(Subject::Velocity)].concat(),
            to_reuse: vec![],
        };
        let branch = Question {
            to_decide: vec![],
            to_learn: [everything(Subject::Input), everything(Subject::Output), everything(Subject::Residual)].concat(),
            to_reuse: vec![],
        };
        Asks { step: Some(step), branch: Some(branch), spans }
    }
}

fn is_distance(measure: Measure) -> bool {
    matches!(measure, Measure::LagDistance(_) | Measure::Norm)
}

struct Recording(Asks);

impl Policy for Recording {
    fn asks(&self) -> Asks {
        self.0.clone()
    }

    fn decide(&mut self, _: At, _: &Measurements) -> Decision {
        Decision::Compute
    }
}

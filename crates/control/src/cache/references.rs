//! What is remembered of each measured subject, and since when: the reference points of the next measurements.
//!
//! The values are whatever the walk's user measures: tensors, or nothing at all where numbers were recorded.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Asks, At, Quantity, Question, Run, Scope, Subject};
use crate::guidance::Branch;
use crate::resume::{Convert, ResumeError};
use crate::schedule::Timestep;

/// Where and when a subject is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The step, and what is asked about.
    pub at: At,
    /// The branch that it is looked at on: the scope's own; of a step, the first.
    pub branch: Branch,
}

/// A subject's value at an earlier step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference<V> {
    /// The step.
    pub step: usize,
    /// Its timestep.
    pub timestep: Timestep,
    /// The value.
    pub value: V,
}

/// What a measurement of a subject may refer to.
#[derive(Debug)]
pub struct Refs<'a, V> {
    /// At the step visited before this one, whether it was computed or not.
    pub visited: Option<&'a Reference<V>>,
    /// At the steps computed in full, newest first.
    pub computed: &'a VecDeque<Reference<V>>,
}

/// Whose subject it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    branch: Branch,
    /// Index of the span that it was seen at.
    span: Option<usize>,
    subject: Subject,
}

/// The reference points of one generation.
#[derive(Debug)]
pub struct References<V> {
    needs: HashMap<Subject, Needs>,
    of: HashMap<Key, Points<V>>,
}

#[derive(Debug)]
struct Points<V> {
    /// At the step visited last, and at the one before.
    visited: Option<Reference<V>>,
    visited_before: Option<Reference<V>>,
    computed: VecDeque<Reference<V>>,
    /// At this step; it joins `computed` when the forward turns out to be one in full.
    pending: Option<Reference<V>>,
}

impl<V> Default for Points<V> {
    fn default() -> Self {
        Points { visited: None, visited_before: None, computed: VecDeque::new(), pending: None }
    }
}

/// What must be remembered of a subject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Needs {
    visited: bool,
    computed: usize,
}

impl<V: Clone> References<V> {
    /// Of everything that `asks` may measure.
    pub fn new(asks: &Asks) -> Self {
        References { needs: needs(asks), of: HashMap::new() }
    }

    /// Looks at a subject, and hands out what its measurements refer to. A subject may be looked at twice in a step;
    /// the step visited before stays the same.
    pub fn visit(&mut self, place: Place, subject: Subject, value: &V) -> Refs<'_, V> {
        let needs = self.needs.get(&subject).copied().unwrap_or_default();
        let (step, timestep) = (place.at.step, place.at.timestep);
        let of = self.of.entry(key(place, subject)).or_default();
        let now = || Reference { step, timestep, value: value.clone() };
        if needs.visited && of.visited.as_ref().is_none_or(|visited| visited.step != step) {
            of.visited_before = of.visited.replace(now());
        }
        if needs.computed > 0 {
            of.pending = Some(now());
        }
        Refs { visited: of.visited_before.as_ref(), computed: &of.computed }
    }

    /// The step is over: what was looked at on the `full` branches, which were computed in full, is what later changes
    /// refer to. A difference of branches refers to steps at which all of them were.
    pub fn close(&mut self, full: &[Branch], all: bool) {
        for (key, of) in &mut self.of {
            let Some(reference) = of.pending.take() else { continue };
            let is_full = if matches!(key.subject, Subject::CfgDifference | Subject::Velocity) {
                all
            } else {
                full.contains(&key.branch)
            };
            let depth = self.needs.get(&key.subject).map_or(0, |needs| needs.computed);
            if is_full && depth > 0 {
                of.computed.push_front(reference);
                of.computed.truncate(depth);
            }
        }
    }

    /// The input of a step turned out to be another than what was looked at: later changes refer to this one.
    pub fn amend_input(&mut self, step: usize, value: &V) {
        for (_, of) in self.of.iter_mut().filter(|(key, _)| key.subject == Subject::Input) {
            let newest = of.computed.front_mut();
            for reference in [of.visited.as_mut(), of.pending.as_mut(), newest].into_iter().flatten() {
                if reference.step == step {
                    reference.value = value.clone();
                }
            }
        }
    }

    /// Another network takes over: changes across the switch mean nothing.
    pub fn clear(&mut self) {
        self.of.clear();
    }

    /// Those of a run's branches between two steps, in order: nothing is pending then.
    pub(super) fn save(&self, branches: &[Branch]) -> Vec<Remembered<V>> {
        let known = self.of.iter().filter(|(key, _)| branches.contains(&key.branch));
        let saved = known.map(|(&key, Points { visited, visited_before, computed, .. })| Remembered {
            of: key,
            visited: visited.clone(),
            visited_before: visited_before.clone(),
            computed: computed.clone(),
        });
        let mut saved: Vec<_> = saved.collect();
        saved.sort_by_key(|one| one.of.name());
        saved
    }

    /// The same in a run under `asks`.
    pub(super) fn resume(asks: &Asks, run: &Run, saved: Vec<Remembered<V>>) -> Result<Self, ResumeError> {
        let mut references = References::new(asks);
        let spans = asks.spans.as_ref().map_or(0, |spans| spans.cut.len());
        for Remembered { of, visited, visited_before, computed } in saved {
            let name = of.name();
            let needs = references.needs.get(&of.subject).copied().unwrap_or_default();
            let exists = run.branches.contains(&of.branch) && of.span.is_none_or(|span| span < spans);
            ResumeError::unless(exists, "what was measured", &name, format!("{spans} spans"))?;
            let (earlier, most) = (usize::from(visited.is_some()), usize::from(needs.visited));
            ResumeError::unless(earlier <= most, &name, format!("{earlier} visited"), format!("{most} visited"))?;
            let (found, most) = (computed.len(), needs.computed);
            ResumeError::unless(found <= most, &name, format!("{found} computed"), format!("{most} computed"))?;
            for Reference { step, timestep, .. } in visited.iter().chain(&visited_before).chain(&computed) {
                let here = run.steps.get(*step).map(|here| here.timestep);
                let there = format!("step {step} at {}", timestep.0);
                ResumeError::unless(here == Some(*timestep), &name, there, format!("{here:?}"))?;
            }
            let points = Points { visited, visited_before, computed, pending: None };
            let twice = references.of.insert(of, points).is_some();
            ResumeError::unless(!twice, "what was measured", format!("{name} twice"), "each once")?;
        }
        Ok(references)
    }
}

/// What is remembered of one subject between two steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remembered<V> {
    of: Key,
    visited: Option<Reference<V>>,
    visited_before: Option<Reference<V>>,
    computed: VecDeque<Reference<V>>,
}

impl<V> Remembered<V> {
    /// The same over other values.
    pub(super) fn map<W, E>(self, convert: Convert<V, W, E>) -> Result<Remembered<W>, E> {
        let name = self.of.name();
        let mut one = |when: String, Reference { step, timestep, value }: Reference<V>| {
            Ok(Reference { step, timestep, value: convert(&format!("reference.{name}.{when}"), value)? })
        };
        Ok(Remembered {
            of: self.of,
            visited: self.visited.map(|at| one("visited".to_string(), at)).transpose()?,
            visited_before: self.visited_before.map(|at| one("visited_before".to_string(), at)).transpose()?,
            computed: (self.computed.into_iter().enumerate())
                .map(|(age, at)| one(format!("computed.{age}"), at))
                .collect::<Result<_, E>>()?,
        })
    }
}

impl Key {
    /// `cond.input`, `cond.3.span_output`: no two have the same.
    fn name(&self) -> String {
        let span = self.span.map(|span| format!("{span}.")).unwrap_or_default();
        let subject = match self.subject {
            Subject::Trial { frames, size } => format!("trial_{frames}_{size}"),
            subject => subject.name().to_string(),
        };
        format!("{}.{span}{subject}", self.branch.name())
    }
}

fn key(place: Place, subject: Subject) -> Key {
    let span = match place.at.scope {
        Scope::Span { span, .. } => Some(span),
        Scope::Step | Scope::Branch(_) => None,
    };
    Key { branch: place.branch, span, subject }
}

/// What must be remembered of each subject for all questions.
fn needs(asks: &Asks) -> HashMap<Subject, Needs> {
    let spans = asks.spans.as_ref().map(|spans| &spans.question);
    let questions: Vec<&Question> = [asks.step.as_ref(), asks.branch.as_ref(), spans].into_iter().flatten().collect();
    let mut needs: HashMap<Subject, Needs> = HashMap::new();
    for Quantity { subject, measure } in questions.iter().flat_map(|q| q.to_decide.iter().chain(&q.to_learn)) {
        let entry = needs.entry(*subject).or_default();
        entry.visited |= measure.since_visit();
        entry.computed = entry.computed.max(measure.anchors());
    }
    needs
}

/// Numbers of values that are remembered, of latents' size and of features' size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// As large as the latents, or as a whole prediction.
    pub latents: usize,
    /// As large as the tokens of one block.
    pub features: usize,
}

/// The most that is remembered of one branch of a model of so many blocks.
pub fn remembered(asks: &Asks, blocks: usize) -> Counts {
    let mut counts = Counts::default();
    let spans = asks.spans.as_ref().map_or(0, |s| s.cut.iter().filter(|span| span.watched).count());
    for (subject, needs) in needs(asks) {
        // The value of this step is pending beside those remembered.
        let values = if needs.visited { 2 } else { 0 } + if needs.computed > 0 { needs.computed + 1 } else { 0 };
        match subject {
            Subject::Input | Subject::Output | Subject::Residual | Subject::CfgDifference | Subject::Velocity => {
                counts.latents += values
            }
            Subject::ModulatedInput | Subject::FilteredInput => counts.features += values,
            Subject::SpanResidual | Subject::SpanOutput => counts.features += values * spans,
            Subject::BlockOutputs => counts.features += values * blocks,
            Subject::Trial { .. } | Subject::TimeEmbedding | Subject::TimeProjection => {}
            Subject::Sample | Subject::SolverError => {}
        }
    }
    counts
}

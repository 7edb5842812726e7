//! Steps that the model does not compute, left to the solver: stepped over, or corrected once the next one is computed.
//!
//! A held or forecast prediction is a wrong value at a right place. A solver can do better, since it knows how to go
//! from one computed step to the next: docs/skipping.md has the derivation and what both gain.
//!
//! * **Step over.** A skipped step is no step. With the sample `X_c` and the data predictions of the last two computed
//!   steps `c` and `b`, the sample at any later step is the solver's own update from `c` in one piece; when a step `i`
//!   is computed, the solver's own corrector spans the whole jump. Nothing is kept beside the solver's history. It
//!   needs a solver of second order: Euler's own error grows with the length of its steps.
//! * **Correct.** After a computed step `c` the history is saved. Skipped steps go on along a forecast, provisionally.
//!   When step `i` is computed, the solver goes back to `c` and walks every skipped step of the fine grid again, with
//!   velocities on the cubic in sigma through those measured at `i` and the three computed steps before. This works
//!   with any solver, and keeps the error of its grid.
//!
//! Both give an estimate of their error for nothing: how far the sample of step `i` moved once `i` was known.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Combination, History, Linear, SolverKind, StepPlan, plan_step};
use crate::interpolate::lagrange;
use crate::resume::{Convert, ResumeError};
use crate::schedule::{Schedule, Sigma};

/// How a step that the model does not compute is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The solver jumps from computed step to computed step.
    Over,
    /// It goes on along a forecast, and integrates these steps again once the next step is computed.
    Corrected,
}

/// Values as large as the latents that correcting keeps beside the solver's history: the saved history, and of three
/// computed steps the velocity and the data prediction.
pub const VALUES_KEPT: usize = super::HISTORY + 1 + 2 * ANCHORS;

/// Computed steps that are remembered. With the one that arrives, a cubic goes through them.
const ANCHORS: usize = 3;

/// How much of a correction the data prediction follows. The model saw `x` and predicted clean latents `m`; for the
/// corrected sample `X` they are taken to be `m + THETA (X - x)`. 1 would keep the velocity, 0 the data prediction; the
/// network's own response lies between.
const THETA: f64 = 0.75;

/// A computed step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Anchor<V> {
    step: usize,
    /// The guided velocity that was measured there.
    velocity: V,
    /// The data prediction as it was kept.
    data: V,
}

/// The solver's walk along the schedule: from prediction to prediction, whatever lies between. Cloned, it is a
/// checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Stepper<V> {
    kind: SolverKind,
    schedule: Schedule,
    keeps: Keeps,
    state: StepperState<V>,
}

/// Where a walk stands: all that it knows beside its schedule. Made by [`Stepper::save`], taken by [`Stepper::resume`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepperState<V> {
    history: History<V>,
    /// Steps whose data predictions the history holds, newest first.
    data_steps: Vec<usize>,
    /// Computed steps with their velocities, newest first: where steps may be corrected.
    anchors: VecDeque<Anchor<V>>,
    /// The history right after the last computed step.
    saved: Option<Saved<V>>,
    /// How the steps since the last computed one were skipped.
    skipped: Option<Skip>,
    /// Whether the last computed step's sample is another than the model saw.
    moved: bool,
}

impl<V> Default for StepperState<V> {
    fn default() -> Self {
        StepperState {
            history: History::default(),
            data_steps: Vec::new(),
            anchors: VecDeque::new(),
            saved: None,
            skipped: None,
            moved: false,
        }
    }
}

impl<V> StepperState<V> {
    /// The same over other values: each is handed over with its name, which no other value has.
    ///
    /// # Errors
    /// The first of a conversion.
    pub fn map<W, E>(self, convert: Convert<V, W, E>) -> Result<StepperState<W>, E> {
        let history = self.history.map("solver", convert)?;
        let mut anchor = |(age, Anchor { step, velocity, data }): (usize, Anchor<V>)| {
            let velocity = convert(&format!("solver.anchor.{age}.velocity"), velocity)?;
            Ok(Anchor { step, velocity, data: convert(&format!("solver.anchor.{age}.data"), data)? })
        };
        let anchors = self.anchors.into_iter().enumerate().map(&mut anchor).collect::<Result<_, E>>()?;
        let saved = self.saved.map(|Saved { history, data_steps }| {
            Ok(Saved { history: history.map("solver.saved", convert)?, data_steps })
        });
        let saved = saved.transpose()?;
        let StepperState { data_steps, skipped, moved, .. } = self;
        Ok(StepperState { history, data_steps, anchors, saved, skipped, moved })
    }

    /// Refuses one that no walk along so many steps comes to.
    fn check(&self, keeps: Keeps, steps: usize) -> Result<(), ResumeError> {
        let inside = |what: &str, found: &[usize]| {
            let falls = found.windows(2).all(|pair| pair[0] > pair[1]) && found.iter().all(|&step| step < steps);
            ResumeError::unless(falls, what, format!("steps {found:?}"), format!("{steps} steps, newest first"))
        };
        let history = |what: &str, history: &History<V>, data_steps: &[usize]| {
            let (steps, data) = (data_steps.len(), history.data.len());
            let fits = steps == data && data <= super::HISTORY && (history.sample.is_some() || data == 0);
            let there = format!("{data} predictions of {steps} steps");
            ResumeError::unless(fits, what, there, format!("one a step, at most {}", super::HISTORY))?;
            inside(what, data_steps)
        };
        history("the solver's history", &self.history, &self.data_steps)?;
        if let Some(saved) = &self.saved {
            history("the solver's saved history", &saved.history, &saved.data_steps)?;
        }
        let anchors: Vec<usize> = self.anchors.iter().map(|anchor| anchor.step).collect();
        inside("the solver's velocities", &anchors)?;
        let (most, saves) = match keeps {
            Keeps::Nothing => (0, false),
            Keeps::Velocities => (ANCHORS, false),
            Keeps::WhatCorrects => (ANCHORS, true),
        };
        let here = format!("at most {most} velocities, {}", if saves { "and a history" } else { "no history" });
        let there = format!("{} velocities, {} history", anchors.len(), if self.saved.is_some() { "a" } else { "no" });
        let fits = anchors.len() <= most && (saves || self.saved.is_none());
        ResumeError::unless(fits, "what the solver goes back to", there, here)
    }
}

/// What is kept beside the solver's own history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing: steps are stepped over, or none are skipped.
    Nothing,
    /// The last velocities, from which the error of a step follows.
    Velocities,
    /// These and the history after the last computed step: steps may be corrected.
    WhatCorrects,
}

/// What is gone back to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved<V> {
    history: History<V>,
    data_steps: Vec<usize>,
}

impl<V: Clone> Stepper<V> {
    /// A walk along a schedule.
    pub fn new(kind: SolverKind, schedule: Schedule, keeps: Keeps) -> Self {
        Stepper { kind, schedule, keeps, state: StepperState::default() }
    }

    /// Goes on from where another walk along the same schedule was.
    ///
    /// # Errors
    /// The state is of another walk, or damaged.
    pub fn resume(
        kind: SolverKind,
        schedule: Schedule,
        keeps: Keeps,
        state: StepperState<V>,
    ) -> Result<Self, ResumeError> {
        state.check(keeps, schedule.steps.len())?;
        Ok(Stepper { kind, schedule, keeps, state })
    }

    /// Where the walk stands.
    pub fn save(&self) -> StepperState<V> {
        self.state.clone()
    }

    /// The clean sample as the last computed step predicts it; `None` before there is one.
    pub fn clean(&self) -> Option<&V> {
        self.state.history.data.front()
    }

    /// Takes the prediction of step `step` in: the velocity that the model made of the latents `x`. Hands out the
    /// step's sample where steps were skipped before it, so that it is now known to be another than `x`.
    pub fn arrive<L>(&mut self, step: usize, x: &V, velocity: &V, linear: &mut L) -> Result<Option<V>, L::Error>
    where
        L: Linear<Value = V>,
    {
        let skipped = self.state.skipped.take();
        let corrected = match (skipped, self.state.saved.clone()) {
            (Some(Skip::Corrected), Some(saved)) => self.walk_again(step, velocity, saved, linear)?,
            _ => None,
        };
        let plan = self.plan_at(step);
        match &corrected {
            None => self.state.history.arrive(&plan, x, velocity, linear)?,
            Some(sample) => {
                let (seen, moved) = (1.0 - THETA, THETA);
                let terms = [
                    (seen * plan.to_data.sample, x),
                    (moved * plan.to_data.sample, sample),
                    (plan.to_data.velocity, velocity),
                ];
                let data = linear.sum(&terms)?;
                self.state.history.arrive_with(&plan, sample, data, linear)?;
            }
        }
        self.note(step);
        if let (Some(data), true) = (self.state.history.data.front().cloned(), self.keeps != Keeps::Nothing) {
            self.state.anchors.push_front(Anchor { step, velocity: velocity.clone(), data });
            self.state.anchors.truncate(ANCHORS);
        }
        if self.keeps == Keeps::WhatCorrects {
            self.state.saved =
                Some(Saved { history: self.state.history.clone(), data_steps: self.state.data_steps.clone() });
        }
        let moves = corrected.is_some() || plan.correct.is_some();
        self.state.moved = moves && skipped.is_some();
        Ok(self.state.history.sample.clone().filter(|_| self.state.moved))
    }

    /// What was wrong with the latents `x` that the model saw at the last computed step, as far as it is known. Where
    /// the sample moved, by how much; else half of what a line through the two computed steps before would have missed
    /// over the step.
    pub fn error<L: Linear<Value = V>>(&self, x: &V, linear: &mut L) -> Result<Option<V>, L::Error> {
        if let (Some(sample), true) = (&self.state.history.sample, self.state.moved) {
            return linear.sum(&[(1.0, sample), (-1.0, x)]).map(Some);
        }
        let anchors: Vec<&Anchor<V>> = self.state.anchors.iter().collect();
        let [i, c, b] = anchors[..] else { return Ok(None) };
        let [si, sc, sb] = [i, c, b].map(|anchor| self.sigma(anchor.step).0);
        let (half, along) = (0.5 * (sc - si), (si - sc) / (sc - sb));
        linear.sum(&[(half, &i.velocity), (-half * (1.0 + along), &c.velocity), (half * along, &b.velocity)]).map(Some)
    }

    /// The latents that step `step + 1` starts from, once its prediction was taken in.
    pub fn leave<L: Linear<Value = V>>(&self, step: usize, linear: &mut L) -> Result<Option<V>, L::Error> {
        let [Some(now), last] = [0, 1].map(|back| self.state.data_steps.get(back).copied()) else { return Ok(None) };
        self.state.history.leave(&self.jump(last, now, step), step, linear)
    }

    /// The latents that step `step + 1` starts from, where `step` is skipped. Provisional, if steps are corrected.
    pub fn skip<L: Linear<Value = V>>(
        &mut self,
        step: usize,
        skip: Skip,
        linear: &mut L,
    ) -> Result<Option<V>, L::Error> {
        self.state.skipped = Some(skip);
        // After a correction the history holds steps that were not computed: a slope between two of them, carried on
        // over a long jump, is noise. The forecast goes by the computed ones.
        let anchors = (self.state.anchors.front(), self.state.anchors.get(1), &self.state.history.sample);
        if let (Skip::Corrected, (Some(c), Some(b), Some(sample))) = (skip, anchors) {
            let terms = if self.kind.steps_over() {
                let jump = self.jump(Some(b.step), c.step, step);
                [(jump.sample, sample), (jump.data[0], &c.data), (jump.data[1], &b.data)]
            } else {
                let [of_sample, of_c, of_b] = self.along_line(c.step, b.step, step);
                [(of_sample, sample), (of_c, &c.velocity), (of_b, &b.velocity)]
            };
            let terms: Vec<(f64, &V)> = terms.into_iter().filter(|(weight, _)| *weight != 0.0).collect();
            return linear.sum(&terms).map(Some);
        }
        self.leave(step, linear)
    }

    /// The latents after `step` as weights of the sample of `c` and the velocities of `c` and `b`: the solver's steps
    /// of the fine grid from `c` on, with velocities on the line in sigma through both. Solvers of first order forecast
    /// by it, since their jump would hold the velocity.
    fn along_line(&self, c: usize, b: usize, step: usize) -> [f64; 3] {
        let points = [c, b].map(|computed| self.sigma(computed).0);
        (c..=step).fold([1.0, 0.0, 0.0], |x, between| {
            let StepPlan { to_data, advance, .. } =
                plan_step(self.kind, None, None, self.sigma(between), self.schedule.end(between));
            let line = lagrange(&points, self.sigma(between).0);
            let velocity = [0.0, line[0], line[1]];
            std::array::from_fn(|k| {
                let data = to_data.sample * x[k] + to_data.velocity * velocity[k];
                advance.sample * x[k] + advance.data[0] * data
            })
        })
    }

    /// The solver's update from step `now` to the step after `step`, in one piece; `last` is where it has an earlier
    /// prediction.
    fn jump(&self, last: Option<usize>, now: usize, step: usize) -> Combination {
        plan_step(self.kind, None, last.map(|s| self.sigma(s)), self.sigma(now), self.schedule.end(step)).advance
    }

    /// The plan of a step whose history may have gaps.
    fn plan_at(&self, step: usize) -> StepPlan {
        let at = |back: usize| self.state.data_steps.get(back).map(|&s| self.sigma(s));
        plan_step(self.kind, at(1), at(0), self.sigma(step), self.schedule.end(step))
    }

    /// Goes back to the last computed step, and walks the skipped ones again up to `step`, whose velocity is known now.
    fn walk_again<L>(
        &mut self,
        step: usize,
        velocity: &V,
        saved: Saved<V>,
        linear: &mut L,
    ) -> Result<Option<V>, L::Error>
    where
        L: Linear<Value = V>,
    {
        (self.state.history, self.state.data_steps) = (saved.history, saved.data_steps);
        let from = self.state.data_steps.first().copied().unwrap_or(step);
        let known = self.state.anchors.iter().map(|anchor| anchor.step);
        let points: Vec<f64> = std::iter::once(step).chain(known).map(|s| self.sigma(s).0).collect();
        let mut z = self.leave(from, linear)?;
        for between in from + 1..step {
            let weights = lagrange(&points, self.sigma(between).0);
            let values = std::iter::once(velocity).chain(self.state.anchors.iter().map(|anchor| &anchor.velocity));
            let terms: Vec<(f64, &V)> = weights.into_iter().zip(values).collect();
            let u = linear.sum(&terms)?;
            let Some(at) = &z else { break };
            self.state.history.arrive(&self.plan_at(between), at, &u, linear)?;
            self.note(between);
            z = self.leave(between, linear)?;
        }
        Ok(z)
    }

    fn note(&mut self, step: usize) {
        self.state.data_steps.insert(0, step);
        self.state.data_steps.truncate(super::HISTORY);
    }

    fn sigma(&self, step: usize) -> Sigma {
        self.schedule.steps[step].sigma
    }
}

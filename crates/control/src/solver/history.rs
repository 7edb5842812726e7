//! What a multistep solver remembers, as a value: it can be kept, and put back to go from there again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::step::{Combination, HISTORY, StepPlan};
use crate::resume::Convert;

/// Who adds up values that this crate does not know.
pub trait Linear {
    /// A tensor, or a number.
    type Value: Clone;
    /// What can go wrong.
    type Error;

    /// The sum of values times weights; there is at least one.
    fn sum(&mut self, terms: &[(f64, &Self::Value)]) -> Result<Self::Value, Self::Error>;

    /// Fresh standard normal noise for the end of a step; the same whenever it is asked for.
    fn noise(&mut self, step: usize) -> Result<Self::Value, Self::Error>;
}

/// The sample and the data predictions that the next steps refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History<V> {
    /// The sample that the last step started from, after its correction.
    pub sample: Option<V>,
    /// Data predictions, newest first.
    pub data: VecDeque<V>,
}

impl<V> Default for History<V> {
    fn default() -> Self {
        History { sample: None, data: VecDeque::new() }
    }
}

impl<V> History<V> {
    /// The same over other values; `of` stands before their names.
    pub(super) fn map<W, E>(self, of: &str, convert: Convert<V, W, E>) -> Result<History<W>, E> {
        let sample = self.sample.map(|sample| convert(&format!("{of}.sample"), sample)).transpose()?;
        let data = self.data.into_iter().enumerate().map(|(age, data)| convert(&format!("{of}.data.{age}"), data));
        Ok(History { sample, data: data.collect::<Result<_, E>>()? })
    }
}

impl<V: Clone> History<V> {
    /// Takes a step's prediction in: from the latents `x` that the model saw and its `velocity` to the step's sample,
    /// which is `x` or, with solvers that correct, a better one.
    pub fn arrive<L: Linear<Value = V>>(
        &mut self,
        plan: &StepPlan,
        x: &V,
        velocity: &V,
        linear: &mut L,
    ) -> Result<(), L::Error> {
        let data = linear.sum(&[(plan.to_data.sample, x), (plan.to_data.velocity, velocity)])?;
        self.arrive_with(plan, x, data, linear)
    }

    /// The same from a data prediction, at a sample `x` that need not be the one that the model saw.
    pub fn arrive_with<L: Linear<Value = V>>(
        &mut self,
        plan: &StepPlan,
        x: &V,
        data: V,
        linear: &mut L,
    ) -> Result<(), L::Error> {
        self.data.push_front(data);
        self.data.truncate(HISTORY);
        let sample = match (&plan.correct, &self.sample) {
            (Some(correction), Some(last)) => self.combine(correction, last, linear)?,
            _ => x.clone(),
        };
        self.sample = Some(sample);
        Ok(())
    }

    /// The next sample, from the one that was arrived at at `step`; `None` before any was.
    pub fn leave<L: Linear<Value = V>>(
        &self,
        advance: &Combination,
        step: usize,
        linear: &mut L,
    ) -> Result<Option<V>, L::Error> {
        let Some(sample) = &self.sample else { return Ok(None) };
        let next = self.combine(advance, sample, linear)?;
        if advance.noise == 0.0 {
            return Ok(Some(next));
        }
        let noise = linear.noise(step)?;
        linear.sum(&[(1.0, &next), (advance.noise, &noise)]).map(Some)
    }

    fn combine<L: Linear<Value = V>>(&self, c: &Combination, sample: &V, linear: &mut L) -> Result<V, L::Error> {
        let data = self.data.iter().zip(c.data).filter(|(_, coefficient)| *coefficient != 0.0);
        let terms: Vec<(f64, &V)> = [(c.sample, sample)].into_iter().chain(data.map(|(m, c)| (c, m))).collect();
        linear.sum(&terms)
    }
}

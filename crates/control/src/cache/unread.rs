//! What was measured and not read yet: handles, or numbers that were read before the policy is told of them.

use serde::{Deserialize, Serialize};

use super::{At, Measurements, Quantity, Run, Scope};
use crate::resume::ResumeError;

/// What measurements are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// To be decided by.
    Question,
    /// To be learnt from.
    Lesson,
}

/// Measurements that wait to be read, oldest first.
pub(super) struct Unread<S>(Vec<Measured<S>>);

/// Measurements of one place.
struct Measured<S> {
    at: At,
    purpose: Purpose,
    quantities: Vec<Quantity>,
    readings: Readings<S>,
}

/// A reading of each quantity.
enum Readings<S> {
    Handles(Vec<S>),
    Numbers(Vec<f64>),
}

impl<S> Default for Unread<S> {
    fn default() -> Self {
        Unread(Vec::new())
    }
}

impl<S> Unread<S> {
    /// Something more was measured.
    pub fn push(&mut self, at: At, purpose: Purpose, measured: Vec<(Quantity, S)>) {
        let (quantities, handles) = measured.into_iter().unzip();
        self.0.push(Measured { at, purpose, quantities, readings: Readings::Handles(handles) });
    }

    /// Reads what is only a handle yet, all in one go.
    pub fn settle<E>(&mut self, read: impl FnOnce(Vec<S>) -> Result<Vec<f64>, E>) -> Result<(), E> {
        let mut handles = Vec::new();
        for measured in &mut self.0 {
            if let Readings::Handles(of_place) = &mut measured.readings {
                handles.append(of_place);
            }
        }
        let mut numbers = if handles.is_empty() { Vec::new() } else { read(handles)? }.into_iter();
        for Measured { quantities, readings, .. } in &mut self.0 {
            if let Readings::Handles(_) = readings {
                *readings = Readings::Numbers(numbers.by_ref().take(quantities.len()).collect());
            }
        }
        Ok(())
    }

    /// Takes everything that was read, in order.
    pub fn take(&mut self) -> Vec<(At, Purpose, Measurements)> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|measured| (measured.at, measured.purpose, measured.numbers().collect()))
            .collect()
    }

    /// What was read and waits to be told.
    pub fn save(&self) -> Vec<Waiting> {
        let waiting = |measured: &Measured<S>| Waiting {
            step: measured.at.step,
            scope: measured.at.scope,
            purpose: measured.purpose,
            measured: measured.numbers().collect(),
        };
        self.0.iter().map(waiting).collect()
    }

    /// The same, in a run.
    pub fn resume(run: &Run, saved: Vec<Waiting>) -> Result<Self, ResumeError> {
        let measured = |Waiting { step, scope, purpose, measured }: Waiting| {
            let at = run.place(step, scope)?;
            let (quantities, numbers) = measured.into_iter().unzip();
            Ok(Measured { at, purpose, quantities, readings: Readings::Numbers(numbers) })
        };
        Ok(Unread(saved.into_iter().map(measured).collect::<Result<_, _>>()?))
    }
}

impl<S> Measured<S> {
    /// Those that were read.
    fn numbers(&self) -> impl Iterator<Item = (Quantity, f64)> + '_ {
        let numbers = match &self.readings {
            Readings::Handles(_) => &[][..],
            Readings::Numbers(numbers) => numbers,
        };
        self.quantities.iter().copied().zip(numbers.iter().copied())
    }
}

/// Measurements of one place that were read before they were told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Waiting {
    step: usize,
    scope: Scope,
    purpose: Purpose,
    #[serde(with = "crate::exact::list")]
    measured: Vec<(Quantity, f64)>,
}

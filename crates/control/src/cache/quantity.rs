//! Every scalar that can be measured while sampling, with its formula and *since when*.
//!
//! Notation: `x_i` the latents shown to the denoiser at step i, `o_i` its prediction for the conditional branch, `v` the step
//! visited before this one (always i - 1, whether it was computed or not), `c` the last step that was computed before this one,
//! and `m(.)` the mean of absolute values over every element.

use serde::{Deserialize, Serialize};

/// A scalar that a policy may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// `m(x_i - x_v)`: how far the input moved since the step before, computed or not.
    InputChangeSinceVisit,
    /// `m(x_i - x_c)`: how far the input moved since the last computed step.
    InputChangeSinceCompute,
    /// `m(o_i - o_c)`: how far the output moved since the last computed step. Known once step i is computed.
    OutputChangeSinceCompute,
    /// `m(o_i)`: the size of the output. Known once step i is computed.
    OutputMagnitude,
}

impl Quantity {
    /// Name in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::InputChangeSinceVisit => "input_change_since_visit",
            Quantity::InputChangeSinceCompute => "input_change_since_compute",
            Quantity::OutputChangeSinceCompute => "output_change_since_compute",
            Quantity::OutputMagnitude => "output_magnitude",
        }
    }
}

/// Measured values. A quantity whose reference point does not exist yet (no earlier step) is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen(Vec<(Quantity, f64)>);

impl Seen {
    /// The value of a quantity, if it was measured.
    pub fn get(&self, quantity: Quantity) -> Option<f64> {
        self.0.iter().find(|(q, _)| *q == quantity).map(|&(_, value)| value)
    }

    /// All measured values.
    pub fn iter(&self) -> impl Iterator<Item = (Quantity, f64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether every measured value is a number and finite.
    pub fn is_finite(&self) -> bool {
        self.0.iter().all(|(_, value)| value.is_finite())
    }
}

impl FromIterator<(Quantity, f64)> for Seen {
    fn from_iter<I: IntoIterator<Item = (Quantity, f64)>>(values: I) -> Self {
        Seen(values.into_iter().collect())
    }
}

impl Extend<(Quantity, f64)> for Seen {
    fn extend<I: IntoIterator<Item = (Quantity, f64)>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

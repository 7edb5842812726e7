//! Measures what a policy asks for, and keeps the tensors that the next question refers to.

use candle_core::{DType, Tensor};
use navicache_control::cache::{Asks, Quantity, Seen};

use crate::Result;

/// The reference points of one generation's measurements. Tensors are shared, not copied.
pub(crate) struct Meter {
    asks: Asks,
    visited_input: Option<Tensor>,
    computed: Option<(Tensor, Tensor)>,
}

impl Meter {
    pub fn new(asks: Asks) -> Self {
        Meter { asks, visited_input: None, computed: None }
    }

    /// What the policy sees before it decides on a step with input `x`.
    pub fn before(&mut self, x: &Tensor) -> Result<Seen> {
        let seen = self.read(&self.asks.to_decide, x, None)?;
        if self.watches() {
            self.visited_input = Some(x.clone());
        }
        Ok(seen)
    }

    /// What it sees after the step was computed to `output`.
    pub fn after(&mut self, x: &Tensor, output: &Tensor) -> Result<Seen> {
        let seen = self.read(&self.asks.to_learn, x, Some(output))?;
        if self.watches() {
            self.computed = Some((x.clone(), output.clone()));
        }
        Ok(seen)
    }

    fn watches(&self) -> bool {
        !(self.asks.to_decide.is_empty() && self.asks.to_learn.is_empty())
    }

    /// Reduces every quantity on the device and reads all of them back at once.
    fn read(&self, quantities: &[Quantity], x: &Tensor, output: Option<&Tensor>) -> Result<Seen> {
        let mut names = Vec::new();
        let mut values = Vec::new();
        for &quantity in quantities {
            if let Some(value) = self.quantity(quantity, x, output)? {
                names.push(quantity);
                values.push(value);
            }
        }
        if values.is_empty() {
            return Ok(Seen::default());
        }
        let values = Tensor::stack(&values, 0)?.to_vec1::<f64>()?;
        Ok(names.into_iter().zip(values).collect())
    }

    fn quantity(&self, quantity: Quantity, x: &Tensor, output: Option<&Tensor>) -> Result<Option<Tensor>> {
        let pair = match quantity {
            Quantity::InputChangeSinceVisit => self.visited_input.as_ref().map(|v| (x, Some(v))),
            Quantity::InputChangeSinceCompute => self.computed.as_ref().map(|(xc, _)| (x, Some(xc))),
            Quantity::OutputChangeSinceCompute => output.zip(self.computed.as_ref()).map(|(o, (_, oc))| (o, Some(oc))),
            Quantity::OutputMagnitude => output.map(|o| (o, None)),
        };
        Ok(match pair {
            None => None,
            Some((a, None)) => Some(mean_abs(a)?),
            Some((a, Some(b))) => Some(mean_abs(&(a - b)?)?),
        })
    }
}

/// Mean of absolute values, summed in f64 so that the size of a video does not blur a decision.
fn mean_abs(t: &Tensor) -> Result<Tensor> {
    Ok(t.abs()?.to_dtype(DType::F64)?.mean_all()?)
}

/// Whether every element is a finite number.
pub(crate) fn is_finite(t: &Tensor) -> Result<bool> {
    Ok(mean_abs(t)?.to_scalar::<f64>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn reference_points_are_the_step_before_and_the_last_computed_one() {
        let asks = Asks {
            to_decide: vec![Quantity::InputChangeSinceVisit],
            to_learn: vec![
                Quantity::InputChangeSinceCompute,
                Quantity::OutputChangeSinceCompute,
                Quantity::OutputMagnitude,
            ],
            to_reuse: vec![],
        };
        let mut meter = Meter::new(asks);
        let xs = [[0.0, 0.0], [1.0, -3.0], [2.0, -3.0]].map(|v| tensor(&v));
        assert_eq!(meter.before(&xs[0]).unwrap(), Seen::default(), "nothing to compare with yet");
        let seen = meter.after(&xs[0], &tensor(&[2.0, -4.0])).unwrap();
        assert_eq!(seen.iter().collect::<Vec<_>>(), [(Quantity::OutputMagnitude, 3.0)]);
        assert_eq!(meter.before(&xs[1]).unwrap().get(Quantity::InputChangeSinceVisit), Some(2.0));
        // step 1 is reused: the visit counts, the computed step stays
        assert_eq!(meter.before(&xs[2]).unwrap().get(Quantity::InputChangeSinceVisit), Some(0.5));
        let seen = meter.after(&xs[2], &tensor(&[3.0, -4.0])).unwrap();
        assert_eq!(seen.get(Quantity::InputChangeSinceCompute), Some(2.5));
        assert_eq!(seen.get(Quantity::OutputChangeSinceCompute), Some(0.5));
    }

    #[test]
    fn non_finite_is_seen() {
        assert!(is_finite(&tensor(&[1.0, -2.0])).unwrap());
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!is_finite(&tensor(&[1.0, broken])).unwrap());
        }
    }
}

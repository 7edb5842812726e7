//! What is added to a tensor when it is read.

use candle_core::Tensor;

/// What is added to a tensor when it is read.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// `factor * up down`.
    Product {
        up: Tensor,   // (out, rank)
        down: Tensor, // (rank, in)
        factor: f64,
    },
    /// `factor` times numbers in the tensor's order.
    Sum { numbers: Tensor, factor: f64 },
}

impl Change {
    pub fn add_to(&self, values: &mut [f32]) -> Result<(), String> {
        let change = match self {
            Change::Product { up, down, factor } => up.matmul(down).and_then(|product| product * *factor),
            Change::Sum { numbers, factor } => numbers * *factor,
        };
        let change = change.and_then(|change| change.flatten_all()?.to_vec1::<f32>()).map_err(|e| e.to_string())?;
        if change.len() != values.len() {
            return Err(format!("a LoRA changes {} numbers, it has {}", change.len(), values.len()));
        }
        values.iter_mut().zip(change).for_each(|(value, change)| *value += change);
        Ok(())
    }
}

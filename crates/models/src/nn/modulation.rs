//! Adaptive layer norm: vectors that a learned table and the timestep give to each block.

use candle_core::Tensor;

use crate::{Result, Weights};

/// A table of `rows` vectors that the timestep's embedding is added to.
#[derive(Debug, Clone)]
pub struct Modulation {
    table: Tensor, // (rows, dim)
}

impl Modulation {
    /// Reads `scale_shift_table`, (1, rows, dim).
    pub fn new(rows: usize, dim: usize, w: &Weights) -> Result<Self> {
        Ok(Modulation { table: w.f32("scale_shift_table", &[1, rows, dim])?.squeeze(0)? })
    }

    /// The rows for a timestep. `embedding`: (rows, dim), or (1, dim) for all rows alike.
    pub fn at(&self, embedding: &Tensor) -> Result<Tensor> {
        Ok(self.table.broadcast_add(embedding)?) // (rows, dim)
    }
}

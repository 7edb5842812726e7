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

    /// Reads the same where it is stored as (rows, dim).
    pub fn of_rows(rows: usize, dim: usize, w: &Weights) -> Result<Self> {
        Ok(Modulation { table: w.f32("scale_shift_table", &[rows, dim])? })
    }

    /// The rows for a timestep. `embedding`: (rows, dim), or (1, dim) for all rows alike.
    pub fn at(&self, embedding: &Tensor) -> Result<Tensor> {
        Ok(self.table.broadcast_add(embedding)?) // (rows, dim)
    }
}

/// Applies something to runs of tokens, each of so many and with what belongs to it, such as a timestep of its own. // (tokens, n) -> (tokens, n)
pub fn by_runs<T>(x: &Tensor, runs: &[(usize, T)], f: impl Fn(&Tensor, &T) -> Result<Tensor>) -> Result<Tensor> {
    if let [(_, only)] = runs {
        return f(x, only);
    }
    let mut parts = Vec::with_capacity(runs.len());
    let mut first = 0;
    for (tokens, own) in runs {
        parts.push(f(&x.narrow(0, first, *tokens)?, own)?);
        first += tokens;
    }
    Ok(Tensor::cat(&parts, 0)?)
}

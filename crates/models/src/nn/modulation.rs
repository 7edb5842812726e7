//! Adaptive layer norm: vectors that a learned table and the timestep give to each block.

use candle_core::Tensor;
use navicache_kernels::gated_residual;

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

/// Applies something to runs of tokens, each of so many and with what belongs to it, such as a timestep of its own.
/// // (tokens, n) -> (tokens, n)
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

/// Adds to runs of tokens what each changes by, weighed by a gate that belongs to the run, (n).
/// // (tokens, n) twice -> (tokens, n)
pub fn gated_by_runs<T>(
    x: &Tensor,
    change: &Tensor,
    runs: &[(usize, T)],
    gate: impl Fn(&T) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut parts = Vec::with_capacity(runs.len());
    let mut first = 0;
    for (tokens, own) in runs {
        let part = |x: &Tensor| x.narrow(0, first, *tokens);
        parts.push(gated_residual(&part(x)?, &part(change)?, &gate(own)?)?);
        first += tokens;
    }
    match <[Tensor; 1]>::try_from(parts) {
        Ok([only]) => Ok(only),
        Err(parts) => Ok(Tensor::cat(&parts, 0)?),
    }
}

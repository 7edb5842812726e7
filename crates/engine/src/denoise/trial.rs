//! PreciseCache's trial pass: the low frequencies of the prediction for thinned-out latents.

use candle_core::Tensor;
use navicache_control::cache::At;
use navicache_models::Branches;

use super::arithmetic::Value;
use super::spectrum::low_pass;
use crate::Result;

/// The low frequencies of the prediction for latents of which every `frames`-th frame and every `size`-th row and
/// column are taken.
///
/// Values are picked, not averaged: a mean of noise has less noise in it than the timestep says.
pub(super) fn trial(
    denoiser: &dyn Branches,
    branch: usize,
    x: &Tensor,
    at: At,
    frames: usize,
    size: usize,
) -> Result<Value> {
    let [pf, ph, pw] = denoiser.anatomy().patch;
    let mut thin = x.clone();
    let mut pick = |axis: usize, factor: usize, patch: usize| -> Result<Tensor> {
        let n = thin.dim(axis)?;
        let count = n.div_ceil(factor).next_multiple_of(patch).min(n);
        let stay = Tensor::new((0..count).map(|i| (i * n / count) as u32).collect::<Vec<_>>(), x.device())?;
        thin = thin.index_select(&stay, axis)?;
        Ok(stay)
    };
    let stay = [pick(2, frames, pf)?, pick(3, size, ph)?, pick(4, size, pw)?];
    let mut pass = denoiser.begin(branch, &thin, at.timestep.0, Some(&stay))?;
    (0..denoiser.anatomy().units.len()).try_for_each(|unit| pass.run_unit(unit))?;
    Ok(vec![low_pass(&pass.finish()?)?])
}

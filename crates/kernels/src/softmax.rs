//! Softmax over the last dimension.
//!
//! Three passes over a row, which is in the cache after the first: the greatest, exponentials and their sum, the
//! division.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use crate::exp::{exp, exp_for_bf16};
use crate::level::{Kernel, Level};
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{contiguous, fit};

/// `exp(x) / sum(exp(x))` of each row. A row of `-inf` alone gives zeros: nothing was chosen.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    if fit(&[x]) {
        return x.contiguous()?.apply_op1_no_bwd(&Op(Level::current()));
    }
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

struct Op(Level);

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let width = layout.shape().dims().last().copied().unwrap_or(1);
        let mut y = vec![0.0; x.len()];
        by_rows(&mut y, width, |first, y| {
            self.0.run(Rows { x: &x[first * width..first * width + y.len()], y, width });
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        crate::cuda::by_rows("softmax", &[(x, layout)], &[])
    }
}

/// What scores are compared with: the greatest of them, or anything where all are `-inf`.
#[inline(always)]
pub(crate) fn base(greatest: f32) -> f32 {
    if greatest == f32::NEG_INFINITY { 0.0 } else { greatest }
}

/// What a sum of exponentials is multiplied with to make it one, or zero if there are none.
#[inline(always)]
pub(crate) fn share(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}

/// The greatest of a slice.
#[inline(always)]
pub(crate) fn greatest<S: Simd>(simd: S, x: &[f32]) -> f32 {
    // Two at a time: one maximum after the other would wait for each.
    let mut best = [simd.splat(f32::NEG_INFINITY); 2];
    let mut pairs = x.chunks_exact(2 * S::LANES);
    for pair in &mut pairs {
        best[0] = simd.max(best[0], simd.load(pair));
        best[1] = simd.max(best[1], simd.load(&pair[S::LANES..]));
    }
    for rest in pairs.remainder().chunks(S::LANES) {
        let rest = simd.load_part(rest, f32::NEG_INFINITY);
        best[0] = simd.max(best[0], rest);
    }
    simd.greatest(simd.max(best[0], best[1]))
}

/// Puts `exp(x - base)` in the place of each `x` and returns their sum.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, x: &mut [f32], base: f32) -> f32 {
    let base = simd.splat(base);
    let mut sums = [simd.splat(0.0); 2];
    let mut pairs = x.chunks_exact_mut(2 * S::LANES);
    for pair in &mut pairs {
        let (left, right) = pair.split_at_mut(S::LANES);
        let powers = [exp(simd, simd.sub(simd.load(left), base)), exp(simd, simd.sub(simd.load(right), base))];
        sums = [simd.add(sums[0], powers[0]), simd.add(sums[1], powers[1])];
        simd.store(powers[0], left);
        simd.store(powers[1], right);
    }
    for rest in pairs.into_remainder().chunks_mut(S::LANES) {
        let power = exp(simd, simd.sub(simd.load_part(rest, f32::NEG_INFINITY), base));
        sums[0] = simd.add(sums[0], power);
        simd.store_part(power, rest);
    }
    simd.sum(simd.add(sums[0], sums[1]))
}

/// The same of numbers that are rounded to bf16 after.
#[inline(always)]
pub(crate) fn exponentials_for_bf16<S: Simd>(simd: S, x: &mut [f32], base: f32) -> f32 {
    let offset = simd.splat(-base * std::f32::consts::LOG2_E);
    let mut sums = [simd.splat(0.0); 2];
    let mut pairs = x.chunks_exact_mut(2 * S::LANES);
    for pair in &mut pairs {
        let (left, right) = pair.split_at_mut(S::LANES);
        let powers = [exp_for_bf16(simd, simd.load(left), offset), exp_for_bf16(simd, simd.load(right), offset)];
        sums = [simd.add(sums[0], powers[0]), simd.add(sums[1], powers[1])];
        simd.store(powers[0], left);
        simd.store(powers[1], right);
    }
    for rest in pairs.into_remainder().chunks_mut(S::LANES) {
        let power = exp_for_bf16(simd, simd.load_part(rest, f32::NEG_INFINITY), offset);
        sums[0] = simd.add(sums[0], power);
        simd.store_part(power, rest);
    }
    simd.sum(simd.add(sums[0], sums[1]))
}

/// Rows of `width`.
struct Rows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    width: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    fn plain(self) {
        for (x, y) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact_mut(self.width)) {
            let base = base(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut sum = 0.0;
            for (x, y) in x.iter().zip(y.iter_mut()) {
                *y = (x - base).exp();
                sum += *y;
            }
            let share = share(sum);
            y.iter_mut().for_each(|y| *y *= share);
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        for (x, y) in self.x.chunks_exact(self.width).zip(self.y.chunks_exact_mut(self.width)) {
            let base = base(greatest(simd, x));
            y.copy_from_slice(x);
            let share = share(exponentials(simd, y, base));
            let factor = simd.splat(share);
            let mut vectors = y.chunks_exact_mut(S::LANES);
            for y in &mut vectors {
                simd.store(simd.mul(simd.load(y), factor), y);
            }
            vectors.into_remainder().iter_mut().for_each(|y| *y *= share);
        }
    }
}

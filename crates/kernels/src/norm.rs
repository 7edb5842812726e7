//! Normalisation over the last dimension: layer norm, with a scale and shift of its own or from elsewhere, and
//! root-mean-square norm.
//!
//! A row is read from memory once: mean, variance and result are three passes over what is in the innermost cache by
//! then. The second pass also corrects the mean by what the first rounded away, so that rows far from zero lose
//! nothing.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use crate::level::{Kernel, Level};
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{contiguous, fit};

/// `(x - mean) / sqrt(variance + epsilon) * scale + shift` for rows of any number, (.., dim) -> (.., dim).
///
/// * `scale`, `shift` - (dim)
pub fn layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    if fit(&[x, scale, shift]) {
        return layer(x, scale, shift, epsilon, 0.0);
    }
    centred(x, epsilon)?.broadcast_mul(scale)?.broadcast_add(shift)
}

/// The same with `1 + scale` for `scale`, as adaptive layer norm has it.
pub fn modulated_layer_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    if fit(&[x, scale, shift]) {
        return layer(x, scale, shift, epsilon, 1.0);
    }
    centred(x, epsilon)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

/// `x / sqrt(mean(x^2) + epsilon) * scale`, (.., dim) -> (.., dim).
///
/// * `scale` - (dim)
pub fn rms_norm(x: &Tensor, scale: &Tensor, epsilon: f64) -> Result<Tensor> {
    if fit(&[x, scale]) {
        let op = Rms { epsilon: epsilon as f32, level: Level::current() };
        return x.contiguous()?.apply_op2_no_bwd(&scale.contiguous()?, &op);
    }
    let square = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?;
    x.broadcast_div(&square.sqrt()?)?.broadcast_mul(scale)
}

fn layer(x: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64, offset: f32) -> Result<Tensor> {
    let op = Layer { epsilon: epsilon as f32, offset, level: Level::current() };
    x.contiguous()?.apply_op3_no_bwd(&scale.contiguous()?, &shift.contiguous()?, &op)
}

/// For tensors that are not f32 in main memory.
fn centred(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?;
    x.broadcast_div(&variance.sqrt()?)
}

struct Layer {
    epsilon: f32,
    /// Added to the scale.
    offset: f32,
    level: Level,
}

impl CustomOp3 for Layer {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [scale, shift] = [contiguous(scale, scale_layout)?, contiguous(shift, shift_layout)?];
        let scale: Vec<f32> = scale.iter().map(|scale| scale + self.offset).collect();
        over_rows(x, layout, &[&scale, shift], |x, y| {
            self.level.run(LayerRows { x, y, scale: &scale, shift, epsilon: self.epsilon });
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        scale: &CudaStorage,
        scale_layout: &Layout,
        shift: &CudaStorage,
        shift_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [(x, layout), (scale, scale_layout), (shift, shift_layout)];
        crate::cuda::by_rows("layer_norm", &inputs, &[self.epsilon, self.offset])
    }
}

struct Rms {
    epsilon: f32,
    level: Level,
}

impl CustomOp2 for Rms {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let scale = contiguous(scale, scale_layout)?;
        over_rows(x, layout, &[scale], |x, y| self.level.run(RmsRows { x, y, scale, epsilon: self.epsilon }))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        scale: &CudaStorage,
        scale_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        crate::cuda::by_rows("rms_norm", &[(x, layout), (scale, scale_layout)], &[self.epsilon])
    }
}

/// Calls `f` with some rows and where they go, until all are done; refuses vectors that are not as long as a row.
fn over_rows(
    x: &CpuStorage,
    layout: &Layout,
    vectors: &[&[f32]],
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) -> Result<(CpuStorage, Shape)> {
    let x = contiguous(x, layout)?;
    let dim = layout.shape().dims().last().copied().unwrap_or(1);
    if let Some(vector) = vectors.iter().find(|vector| vector.len() != dim) {
        bail!("norm: rows of {dim}, a vector of {}", vector.len());
    }
    let mut y = vec![0.0; x.len()];
    by_rows(&mut y, dim, |first, y| f(&x[first * dim..first * dim + y.len()], y));
    Ok((CpuStorage::F32(y), layout.shape().clone()))
}

/// Rows as long as `scale` and `shift`.
struct LayerRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    epsilon: f32,
}

impl Kernel for LayerRows<'_> {
    type Output = ();

    fn plain(self) {
        let dim = self.scale.len();
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            let mean = x.iter().copied().map(f64::from).sum::<f64>() / dim as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / dim as f64;
            let factor = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(self.scale).zip(self.shift) {
                *y = ((f64::from(*x) - mean) * factor) as f32 * scale + shift;
            }
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let dim = self.scale.len();
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            let rough = moments(simd, x, 0.0)[0] / dim as f32;
            let [rest, squares] = moments(simd, x, rough).map(|moment| moment / dim as f32);
            let factor = simd.splat(1.0 / ((squares - rest * rest).max(0.0) + self.epsilon).sqrt());
            let (rough, rest) = (simd.splat(rough), simd.splat(rest));
            for i in (0..dim).step_by(S::LANES) {
                let x = simd.sub(simd.sub(simd.load_part(&x[i..], 0.0), rough), rest);
                let scale = simd.mul(factor, simd.load_part(&self.scale[i..], 0.0));
                simd.store_part(simd.fma(x, scale, simd.load_part(&self.shift[i..], 0.0)), &mut y[i..]);
            }
        }
    }
}

/// Sums of `x - from` and of its squares.
#[inline(always)]
pub(crate) fn moments<S: Simd>(simd: S, x: &[f32], from: f32) -> [f32; 2] {
    let origin = simd.splat(from);
    // Several at a time: one sum after the other would wait for each.
    let (mut sums, mut squares) = ([simd.splat(0.0); 4], [simd.splat(0.0); 4]);
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for i in 0..4 {
            let x = simd.sub(simd.load(&block[i * S::LANES..]), origin);
            sums[i] = simd.add(sums[i], x);
            squares[i] = simd.fma(x, x, squares[i]);
        }
    }
    for rest in blocks.remainder().chunks(S::LANES) {
        let x = simd.sub(simd.load_part(rest, from), origin);
        sums[0] = simd.add(sums[0], x);
        squares[0] = simd.fma(x, x, squares[0]);
    }
    let [sums, squares] = [sums, squares].map(|[a, b, c, d]| simd.add(simd.add(a, b), simd.add(c, d)));
    [simd.sum(sums), simd.sum(squares)]
}

/// Rows as long as `scale`.
struct RmsRows<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    scale: &'a [f32],
    epsilon: f32,
}

impl Kernel for RmsRows<'_> {
    type Output = ();

    fn plain(self) {
        let dim = self.scale.len();
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / dim as f64;
            let factor = (1.0 / (square + f64::from(self.epsilon)).sqrt()) as f32;
            for ((y, x), scale) in y.iter_mut().zip(x).zip(self.scale) {
                *y = x * factor * scale;
            }
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let dim = self.scale.len();
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            let square = moments(simd, x, 0.0)[1] / dim as f32;
            let factor = simd.splat(1.0 / (square + self.epsilon).sqrt());
            for i in (0..dim).step_by(S::LANES) {
                let x = simd.mul(simd.load_part(&x[i..], 0.0), factor);
                simd.store_part(simd.mul(x, simd.load_part(&self.scale[i..], 0.0)), &mut y[i..]);
            }
        }
    }
}

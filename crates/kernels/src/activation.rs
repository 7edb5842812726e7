//! GELU (by tanh) and SiLU.
//!
//! Both are `x * sigmoid(z)`: SiLU with `z = x`, GELU with `z = 2 sqrt(2 / pi) (x + 0.044715 x^3)`, as `(1 + tanh(z /
//! 2)) / 2` is `sigmoid(z)`. One exponential and one division a vector, so that memory is what takes the time.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::exp::exp;
use crate::level::{Kernel, Level};
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{contiguous, fit};

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, of any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if fit(&[x]) { x.contiguous()?.apply_op1_no_bwd(&Op(Gelu, Level::current())) } else { x.gelu() }
}

/// `x / (1 + exp(-x))`, of any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if fit(&[x]) { x.contiguous()?.apply_op1_no_bwd(&Op(Silu, Level::current())) } else { x.silu() }
}

/// What becomes of a layer's outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// As [`gelu`] gives.
    Gelu,
    /// As [`silu`] gives.
    Silu,
}

/// GELU that a product of bf16 reads: on a GPU rounded to it, which the product would do; elsewhere as [`gelu`].
pub fn gelu_for_bf16(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::rounded_gelu(&x.contiguous()?);
    }
    gelu(x)
}

impl Activation {
    /// Of a tensor of any shape.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::None => Ok(x.clone()),
            Activation::Gelu => gelu(x),
            Activation::Silu => silu(x),
        }
    }

    pub(crate) fn plain(self, x: f32) -> f32 {
        match self {
            Activation::None => x,
            Activation::Gelu => Gelu.plain(x),
            Activation::Silu => Silu.plain(x),
        }
    }

    #[inline(always)]
    pub(crate) fn fast<S: Simd>(self, simd: S, x: S::V) -> S::V {
        match self {
            Activation::None => x,
            Activation::Gelu => Gelu.fast(simd, x),
            Activation::Silu => Silu.fast(simd, x),
        }
    }
}

/// A function of one number.
trait Function: Copy + Sync {
    const NAME: &'static str;
    fn plain(self, x: f32) -> f32;
    fn fast<S: Simd>(self, simd: S, x: S::V) -> S::V;
}

#[derive(Clone, Copy)]
struct Gelu;

#[derive(Clone, Copy)]
struct Silu;

/// `sqrt(2 / pi)`
const SQRT_2_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Function for Gelu {
    const NAME: &'static str = "gelu";

    fn plain(self, x: f32) -> f32 {
        0.5 * x * (1.0 + (SQRT_2_PI * x * (1.0 + CUBIC * x * x)).tanh())
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S, x: S::V) -> S::V {
        let bend = simd.fma(simd.mul(x, x), simd.splat(-2.0 * SQRT_2_PI * CUBIC), simd.splat(-2.0 * SQRT_2_PI));
        simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.mul(x, bend))))
    }
}

impl Function for Silu {
    const NAME: &'static str = "silu";

    fn plain(self, x: f32) -> f32 {
        x / (1.0 + (-x).exp())
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S, x: S::V) -> S::V {
        simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.sub(simd.splat(0.0), x))))
    }
}

struct Op<F>(F, Level);

impl<F: Function> CustomOp1 for Op<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let mut y = vec![0.0; x.len()];
        by_rows(&mut y, 1, |first, y| self.1.run(Map { function: self.0, x: &x[first..first + y.len()], y }));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (shape, count) = (layout.shape().clone(), layout.shape().elem_count());
        let inputs = [cuda::contiguous(x, layout)?];
        let call = cuda::Call { file: cuda::ELEMENTS, name: F::NAME, inputs: &inputs, sizes: &[count], numbers: &[] };
        Ok((call.run(cuda::covering(count), &shape, &x.device)?, shape))
    }
}

/// `y = function(x)`, of slices of the same length.
struct Map<'a, F> {
    function: F,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<F: Function> Kernel for Map<'_, F> {
    type Output = ();

    fn plain(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = self.function.plain(*x);
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let (mut x, mut y) = (self.x.chunks_exact(S::LANES), self.y.chunks_exact_mut(S::LANES));
        for (x, y) in (&mut x).zip(&mut y) {
            simd.store(self.function.fast(simd, simd.load(x)), y);
        }
        simd.store_part(self.function.fast(simd, simd.load_part(x.remainder(), 0.0)), y.into_remainder());
    }
}

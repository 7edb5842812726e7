//! Residuals: what a layer gives, perhaps weighed channel by channel, is added to what it was given. One pass over
//! memory.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::level::{Kernel, Level};
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{contiguous, fit, in_memory};

/// `x + y`, of one shape.
pub fn residual(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if in_memory(&[x, y]) && x.dims() == y.dims() {
        return x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Sum(Level::current()));
    }
    x + y
}

/// `x + y * gate`, (.., dim) -> (.., dim).
///
/// * `gate` - (dim)
pub fn gated_residual(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() || gate.dims() != &x.dims()[x.rank().saturating_sub(1)..] {
        bail!("gated residual: x {:?}, y {:?}, gate {:?}", x.dims(), y.dims(), gate.dims());
    }
    if fit(&[x, y, gate]) {
        return x.contiguous()?.apply_op3_no_bwd(&y.contiguous()?, &gate.contiguous()?, &Op(Level::current()));
    }
    x + y.broadcast_mul(gate)?
}

struct Sum(Level);

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [x, y] = [contiguous(x, layout)?, contiguous(y, y_layout)?];
        let mut out = vec![0.0; x.len()];
        by_rows(&mut out, 1, |first, out| {
            let part = first..first + out.len();
            self.0.run(Add { x: &x[part.clone()], y: &y[part], out });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// `out = x + y`
struct Add<'a> {
    x: &'a [f32],
    y: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    fn plain(self) {
        self.out.iter_mut().zip(self.x.iter().zip(self.y)).for_each(|(out, (x, y))| *out = x + y);
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let both = self.x.chunks(S::LANES).zip(self.y.chunks(S::LANES));
        for (out, (x, y)) in self.out.chunks_mut(S::LANES).zip(both) {
            simd.store_part(simd.add(simd.load_part(x, 0.0), simd.load_part(y, 0.0)), out);
        }
    }
}

struct Op(Level);

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "gated-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [x, y, gate] = [contiguous(x, layout)?, contiguous(y, y_layout)?, contiguous(gate, gate_layout)?];
        let mut out = vec![0.0; x.len()];
        by_rows(&mut out, gate.len(), |first, out| {
            let part = first * gate.len()..first * gate.len() + out.len();
            self.0.run(Rows { x: &x[part.clone()], y: &y[part], gate, out });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        gate: &CudaStorage,
        gate_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        crate::cuda::by_rows("gated_residual", &[(x, layout), (y, y_layout), (gate, gate_layout)], &[])
    }
}

/// Rows as long as `gate`.
struct Rows<'a> {
    x: &'a [f32],
    y: &'a [f32],
    gate: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    fn plain(self) {
        for (i, out) in self.out.iter_mut().enumerate() {
            *out = self.x[i] + self.y[i] * self.gate[i % self.gate.len()];
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let dim = self.gate.len();
        let rows = self.x.chunks_exact(dim).zip(self.y.chunks_exact(dim)).zip(self.out.chunks_exact_mut(dim));
        for ((x, y), out) in rows {
            for i in (0..dim).step_by(S::LANES) {
                let [x, y, gate] = [&x[i..], &y[i..], &self.gate[i..]];
                let (x, y, gate) = (simd.load_part(x, 0.0), simd.load_part(y, 0.0), simd.load_part(gate, 0.0));
                simd.store_part(simd.fma(y, gate, x), &mut out[i..]);
            }
        }
    }
}

//! Rotary position embedding of neighbouring channels (Su et al. 2021, arXiv 2104.09864).
//!
//! `x` times cosines plus `x` with neighbours swapped times sines of alternating sign: two products a vector. The
//! cosines and sines of a token are spread to all channels once, for all heads. Heads may be columns of the same rows,
//! as a projection gives them: they become blocks of their own on the way.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::level::{Kernel, Level};
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{Heads, contiguous, fit};

/// Turns channels `2 i` and `2 i + 1` of each token by its angle `i`, (heads, n, d) -> (heads, n, d).
///
/// * `x` - with any strides of heads and tokens
/// * `cos`, `sin` - (n, d / 2)
pub fn rotate_pairs(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (heads, n, d) = x.dims3()?;
    if d % 2 != 0 || [cos, sin].iter().any(|table| table.dims() != [n, d / 2]) {
        bail!("rotary embedding: x {:?}, cos {:?}, sin {:?}", x.dims(), cos.dims(), sin.dims());
    }
    if fit(&[x, cos, sin]) {
        let op = Op(Level::current());
        return Heads::tensor(x)?.apply_op3_no_bwd(&cos.contiguous()?, &sin.contiguous()?, &op);
    }
    let pairs = x.contiguous()?.reshape((heads, n, d / 2, 2))?;
    let [even, odd] = [pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?];
    let turned =
        [(even.broadcast_mul(cos)? - odd.broadcast_mul(sin)?)?, (even.broadcast_mul(sin)? + odd.broadcast_mul(cos)?)?];
    Tensor::stack(&turned, 3)?.reshape((heads, n, d))
}

struct Op(Level);

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "rotary-embedding"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (heads, n, d) = layout.shape().dims3()?;
        let (cos, sin) = (contiguous(cos, cos_layout)?, contiguous(sin, sin_layout)?);
        let spread = |x: &[f32], sign: f32| x.iter().flat_map(|x| [sign * x, *x]).collect::<Vec<f32>>(); // (n, d)
        let (cos, sin) = (spread(cos, 1.0), spread(sin, -1.0));
        let x = Heads::new(x, layout)?;
        let mut y = vec![0.0; heads * n * d];
        by_rows(&mut y, d, |first, y| self.0.run(Rows { x, cos: &cos, sin: &sin, first, n, y }));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        cos: &CudaStorage,
        cos_layout: &Layout,
        sin: &CudaStorage,
        sin_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (heads, n, d) = layout.shape().dims3()?;
        let shape = layout.shape().clone();
        let from = x.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
        let inputs = [from, cuda::contiguous(cos, cos_layout)?, cuda::contiguous(sin, sin_layout)?];
        let sizes = [heads, n, d / 2, layout.stride()[0], layout.stride()[1]];
        let call =
            cuda::Call { file: cuda::ELEMENTS, name: "rotate_pairs", inputs: &inputs, sizes: &sizes, numbers: &[] };
        Ok((call.run(cuda::covering(heads * n * d / 2), &shape, &x.device)?, shape))
    }
}

/// Some rows of all heads' one after the other.
struct Rows<'a> {
    x: Heads<'a>,   // (heads, n, d)
    cos: &'a [f32], // (n, d), each twice
    sin: &'a [f32], // (n, d), each twice, first negative
    first: usize,
    n: usize,
    y: &'a mut [f32], // (rows, d)
}

impl<'a> Rows<'a> {
    /// Each row with its cosines, sines and place.
    #[inline(always)]
    fn each(self) -> impl Iterator<Item = (&'a [f32], &'a [f32], &'a [f32], &'a mut [f32])> {
        let Rows { x, cos, sin, first, n, y } = self;
        (first..).zip(y.chunks_exact_mut(x.width)).map(move |(i, y)| {
            let table = i % n * x.width..(i % n + 1) * x.width;
            (x.row(i / n, i % n), &cos[table.clone()], &sin[table], y)
        })
    }
}

impl Kernel for Rows<'_> {
    type Output = ();

    fn plain(self) {
        for (x, cos, sin, y) in self.each() {
            for (i, y) in y.iter_mut().enumerate() {
                *y = x[i] * cos[i] + x[i ^ 1] * sin[i];
            }
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        for (x, cos, sin, y) in self.each() {
            for i in (0..x.len()).step_by(S::LANES) {
                let [x, cos, sin] = [&x[i..], &cos[i..], &sin[i..]];
                let (x, cos, sin) = (simd.load_part(x, 0.0), simd.load_part(cos, 0.0), simd.load_part(sin, 0.0));
                simd.store_part(simd.fma(x, cos, simd.mul(simd.swap_pairs(x), sin)), &mut y[i..]);
            }
        }
    }
}

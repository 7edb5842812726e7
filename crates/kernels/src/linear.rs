//! Product with a matrix of bf16.
//!
//! AVX-512 BF16 multiplies two pairs of bf16 and adds both products to an f32 in one instruction, twice the work of f32's, so the activations
//! are rounded to bf16 too. Groups of the matrix' rows are packed in panels as they are needed: a group stays in the second cache
//! while all activations pass by. Without the instruction, the same numbers are widened and multiplied in f32: results differ by the
//! rounding of sums only.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::level::Level;
use crate::simd::{PAIR_COLUMNS, PAIR_ROWS, PairTile};
use crate::storage::{contiguous, fit};

/// Rows of the matrix in a group, columns of the result.
const GROUP: usize = 4 * PAIR_COLUMNS;
/// Pairs of inputs in a block.
const DEPTH: usize = 768;

/// `bf16(x) w^T + bias`, (n, in) -> (n, out), with sums in f32.
///
/// * `w` - (out, in), bf16
/// * `bias` - (out)
pub fn linear_bf16(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((_, inputs), (outputs, wide)) = (x.dims2()?, w.dims2()?);
    if inputs != wide || w.dtype() != DType::BF16 || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("linear: x {:?}, w {:?} {:?}, bias {:?}", x.dims(), w.dtype(), w.dims(), bias.map(Tensor::dims));
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && w.device().is_cuda() {
        return crate::cuda::linear_bf16(x, w, bias);
    }
    if let (Some(tile), true, true) = (Level::current().pair_tile(), fit(&[x]), w.device().is_cpu()) {
        let bias = match bias {
            Some(bias) => bias.to_dtype(DType::F32)?.to_vec1()?,
            None => vec![0.0; outputs],
        };
        return x.contiguous()?.apply_op2_no_bwd(&w.contiguous()?, &Op { tile, bias });
    }
    let y = x.to_dtype(DType::BF16)?.to_dtype(x.dtype())?.matmul(&w.to_dtype(x.dtype())?.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct Op {
    tile: PairTile,
    bias: Vec<f32>,
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "linear-bf16"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, inputs), outputs) = (layout.shape().dims2()?, self.bias.len());
        let Some((first, end)) = w_layout.contiguous_offsets() else { bail!("the matrix is not contiguous") };
        let w = &w.as_slice::<bf16>()?[first..end];
        let mut y = vec![0.0; n * outputs];
        if !y.is_empty() && inputs > 0 {
            self.run(&pairs(contiguous(x, layout)?, inputs), w, inputs, &mut y);
        } else {
            y.chunks_exact_mut(outputs.max(1)).for_each(|y| y.copy_from_slice(&self.bias));
        }
        Ok((CpuStorage::F32(y), (n, outputs).into()))
    }
}

/// Rows rounded to bf16, in pairs; filled up with zeros to full pairs and full tiles.
fn pairs(x: &[f32], inputs: usize) -> Vec<u32> {
    let depth = inputs.div_ceil(2);
    let mut pairs = vec![0; (x.len() / inputs).next_multiple_of(PAIR_ROWS) * depth];
    pairs.par_chunks_mut(depth).zip(x.par_chunks_exact(inputs)).for_each(|(pairs, x)| {
        for (pair, x) in pairs.iter_mut().zip(x.chunks(2)) {
            *pair = packed(bf16::from_f32(x[0]), x.get(1).map_or(bf16::ZERO, |x| bf16::from_f32(*x)));
        }
    });
    pairs
}

/// The first in the lower half.
fn packed(a: bf16, b: bf16) -> u32 {
    u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16
}

impl Op {
    /// * `x` - (rows of full tiles, pairs)
    /// * `w` - (out, in)
    /// * `y` - (n, out)
    fn run(&self, x: &[u32], w: &[bf16], inputs: usize, y: &mut [f32]) {
        let (outputs, stride) = (self.bias.len(), inputs.div_ceil(2));
        // What is written by whom: for each group, its columns of every row.
        let mut groups: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(GROUP)).map(|_| Vec::new()).collect();
        for row in y.chunks_exact_mut(outputs) {
            for (group, part) in groups.iter_mut().zip(row.chunks_mut(GROUP)) {
                group.push(part);
            }
        }
        groups.into_par_iter().enumerate().for_each(|(g, mut y)| {
            let width = y[0].len();
            let (w, bias) = (&w[g * GROUP * inputs..][..width * inputs], &self.bias[g * GROUP..][..width]);
            let mut panels = vec![0; GROUP * DEPTH.min(stride)];
            for first in (0..stride).step_by(DEPTH) {
                let depth = DEPTH.min(stride - first);
                let panels = &mut panels[..GROUP * depth];
                pack(w, inputs, first, panels);
                for (i, y) in y.chunks_mut(PAIR_ROWS).enumerate() {
                    let mut sums = [0.0; PAIR_ROWS * GROUP];
                    for (sums, y) in sums.chunks_exact_mut(GROUP).zip(y.iter()) {
                        sums[..width].copy_from_slice(if first == 0 { bias } else { y });
                    }
                    let x = &x[i * PAIR_ROWS * stride + first..];
                    let used = panels.chunks_exact(PAIR_COLUMNS * depth).take(width.div_ceil(PAIR_COLUMNS));
                    for (p, panel) in used.enumerate() {
                        self.tile.add(x, stride, panel, &mut sums[p * PAIR_COLUMNS..], GROUP);
                    }
                    for (sums, y) in sums.chunks_exact(GROUP).zip(y) {
                        y.copy_from_slice(&sums[..width]);
                    }
                }
            }
        });
    }
}

/// A block of pairs from the first one on of some rows of the matrix, in panels. // (panels, depth, columns)
fn pack(w: &[bf16], inputs: usize, first: usize, panels: &mut [u32]) {
    let depth = panels.len() / GROUP;
    for (j, row) in w.chunks_exact(inputs).enumerate() {
        let panel = &mut panels[j / PAIR_COLUMNS * PAIR_COLUMNS * depth + j % PAIR_COLUMNS..];
        let row = row[2 * first..].chunks(2);
        for (to, pair) in panel.iter_mut().step_by(PAIR_COLUMNS).take(depth).zip(row) {
            *to = packed(pair[0], pair.get(1).copied().unwrap_or(bf16::ZERO));
        }
    }
}

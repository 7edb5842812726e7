//! Product with a matrix of weights, in f32 or with what is multiplied rounded to bf16.
//!
//! Rows of the matrix are read as they are needed, from whatever they are kept in, and packed in panels of a tile's
//! columns. Then blocks of activations meet groups of panels: the block stays in the second cache while a piece of a
//! panel passes by, the sums of a tile in registers (Goto and van de Geijn 2008, doi 10.1145/1356052.1356053). AVX-512
//! BF16 multiplies two pairs of bf16 and adds both products to an f32 in one instruction, twice the work of f32's;
//! without it, the rounded numbers are multiplied in f32, so that results differ by the rounding of sums only.
//!
//! Each sum is one chain over the inputs, whatever block or group it falls into.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::activation::Activation;
use crate::level::{Kernel, Level};
use crate::matrix::{Rounded, Rows, pack, panels};
use crate::panel::{Number, Pair};
use crate::parallel::SMALL;
use crate::precision::Precision;
use crate::simd::Simd;
use crate::storage::contiguous;
use crate::tile::{F32, MAX_ROWS, Onto, PAIR_COLUMNS, PairTile, Products, Tiles, Units, WithProducts};

/// Rows of activations in a block: a multiple of every tile's rows.
const BLOCK: usize = 96;
/// Most columns of the result in a group: a multiple of every tile's columns.
const GROUP: usize = 256;
/// Numbers of a panel's column in a piece, which a block meets at a time. Shorter ones would stay in the first cache,
/// but putting a tile's sums away and fetching them again costs more than that gains.
const DEPTH: usize = 768;

/// `then(x w^T + bias)`, (n, in) -> (n, out). All is in main memory.
///
/// * `x` - (n, in), f32
/// * `bias` - (out)
pub fn linear(
    x: &Tensor,
    w: &dyn Rows,
    bias: Option<&Tensor>,
    then: Activation,
    precision: Precision,
) -> Result<Tensor> {
    let ((_, inputs), (outputs, wide)) = (x.dims2()?, w.dims());
    if inputs != wide || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("linear: x {:?}, w {:?}, bias {:?}", x.dims(), w.dims(), bias.map(Tensor::dims));
    }
    let bias = match bias {
        Some(bias) => bias.to_dtype(DType::F32)?.to_vec1()?,
        None => vec![0.0; outputs],
    };
    x.contiguous()?.apply_op1_no_bwd(&Op { w, layer: Layer { bias, then }, precision, level: Level::current() })
}

/// The same on another device, where `x` and `w`, (out, in), are.
pub fn linear_on_device(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    then: Activation,
    precision: Precision,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if precision == Precision::Bf16 && x.device().is_cuda() {
        return then.apply(&crate::cuda::linear_bf16(x, &w.to_dtype(DType::BF16)?, bias)?);
    }
    let rounded = |x: &Tensor| match precision {
        Precision::F32 => x.to_dtype(DType::F32),
        Precision::Bf16 => x.to_dtype(DType::BF16)?.to_dtype(DType::F32),
    };
    let y = rounded(x)?.matmul(&rounded(w)?.t()?)?;
    match bias {
        Some(bias) => then.apply(&y.broadcast_add(bias)?),
        None => then.apply(&y),
    }
}

struct Op<'a> {
    w: &'a dyn Rows,
    layer: Layer,
    precision: Precision,
    level: Level,
}

/// What is done beside the product.
struct Layer {
    bias: Vec<f32>,
    then: Activation,
}

impl CustomOp1 for Op<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Op { w, layer, precision, level } = self;
        let ((n, inputs), x, outputs) = (layout.shape().dims2()?, contiguous(x, layout)?, layer.bias.len());
        let y = match (precision, level.pair_tile()) {
            _ if inputs == 0 || outputs == 0 || n == 0 => {
                let mut row = layer.bias.clone();
                row.iter_mut().for_each(|x| *x = layer.then.plain(*x));
                row.repeat(n)
            }
            (Precision::F32, _) => product_f32(*level, x, *w, layer)?,
            (Precision::Bf16, None) => product_f32(*level, &rounded(x), &Rounded(*w), layer)?,
            (Precision::Bf16, Some(tile)) => product_bf16(*level, tile, x, *w, layer)?,
        };
        Ok((CpuStorage::F32(y), (n, outputs).into()))
    }
}

/// Rows rounded to bf16, packed for tiles. // (n, inputs) -> (whole tiles of rows, depth)
fn pairs(tile: PairTile, x: &[f32], inputs: usize) -> Vec<Pair> {
    let Units { rows, step } = tile.units();
    let (n, depth) = (x.len() / inputs, Pair::row(inputs).next_multiple_of(step));
    let mut pairs = vec![0; n.next_multiple_of(rows) * depth];
    let pack = |(pairs, x): (&mut [Pair], &[f32])| tile.pack(x, inputs, pairs);
    if x.len() <= SMALL / 16 {
        pairs.chunks_mut(rows * depth).zip(x.chunks(rows * inputs)).for_each(pack);
    } else {
        pairs.par_chunks_mut(rows * depth).zip(x.par_chunks(rows * inputs)).for_each(pack);
    }
    pairs
}

/// Rounded to bf16 and back.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

/// Products in f32. // (n, in) -> (n, out)
fn product_f32(level: Level, x: &[f32], w: &dyn Rows, layer: &Layer) -> Result<Vec<f32>> {
    let (units, columns) = level.tile_f32();
    let depth = w.dims().1;
    let panels = panels::<f32>(w, columns, units.step)?;
    let sides = Sides { x, n: x.len() / depth, panels: &panels, depth, rows: units.rows, columns };
    Ok(product(&sides, layer, |task| level.run(task)))
}

/// Products of what is rounded to bf16: groups of columns, of each the blocks of rows, so that weights are packed where
/// they are used and read once, and stay in the second cache while all rows pass by. // (n, in) -> (n, out)
#[allow(unsafe_code)]
fn product_bf16(level: Level, tile: PairTile, x: &[f32], w: &dyn Rows, layer: &Layer) -> Result<Vec<f32>> {
    let (Units { rows, step }, (outputs, inputs)) = (tile.units(), w.dims());
    let (n, depth) = (x.len() / inputs, Pair::row(inputs).next_multiple_of(step));
    let (x, kept) = (pairs(tile, x, inputs), w.pair_panels(PAIR_COLUMNS, step));
    let mut y: Vec<f32> = Vec::with_capacity(n * outputs);
    let threads = rayon::current_num_threads();
    let width = outputs.div_ceil(2 * threads).next_multiple_of(PAIR_COLUMNS).min(GROUP);
    // What is written by whom: for each group, its columns of every row.
    let mut groups: Vec<Vec<&mut [MaybeUninit<f32>]>> =
        (0..outputs.div_ceil(width)).map(|_| Vec::with_capacity(n)).collect();
    for row in y.spare_capacity_mut()[..n * outputs].chunks_exact_mut(outputs) {
        groups.iter_mut().zip(row.chunks_mut(width)).for_each(|(group, part)| group.push(part));
    }
    let alone = groups.len() >= 2 * threads || n * inputs * outputs <= SMALL;
    let group = |packed: &mut Vec<Pair>, (g, mut y): (usize, Vec<&mut [MaybeUninit<f32>]>)| -> Result<()> {
        let bias = &layer.bias[g * width..][..y[0].len()];
        let len = bias.len().next_multiple_of(PAIR_COLUMNS) * depth;
        let panels = match kept {
            Some(panels) => &panels[g * width * depth..][..len],
            None => {
                packed.resize(len.max(packed.len()), 0);
                for (p, panel) in packed[..len].chunks_exact_mut(PAIR_COLUMNS * depth).enumerate() {
                    pack(w, g * width + p * PAIR_COLUMNS, depth, panel, PAIR_COLUMNS)?;
                }
                &packed[..len]
            }
        };
        let block = |(x, y): (&[Pair], &mut [&mut [MaybeUninit<f32>]])| {
            level.run(OfPairs(Task { x, panels, depth, bias, then: layer.then, y }, tile));
        };
        if alone {
            x.chunks(BLOCK * depth).zip(y.chunks_mut(BLOCK)).for_each(block);
        } else {
            x.par_chunks(BLOCK * depth).zip(y.par_chunks_mut(BLOCK)).for_each(block);
        }
        Ok(())
    };
    const { assert!(BLOCK.is_multiple_of(MAX_ROWS)) };
    debug_assert!(BLOCK.is_multiple_of(rows));
    if n * inputs * outputs <= SMALL {
        let mut packed = Vec::new();
        groups.into_iter().enumerate().try_for_each(|each| group(&mut packed, each))?;
    } else {
        groups.into_par_iter().enumerate().map_init(Vec::new, group).collect::<Result<()>>()?;
    }
    // SAFETY: there is room for all rows, and every group has written all of its columns of all of them; together these
    // are all.
    unsafe { y.set_len(n * outputs) };
    Ok(y)
}

/// Both sides of a product.
struct Sides<'a, N> {
    x: &'a [N], // (at least n, depth)
    n: usize,
    panels: &'a [N], // (panels, depth, columns)
    depth: usize,
    /// Rows and columns of a tile.
    rows: usize,
    columns: usize,
}

/// Shares the work out: blocks of rows, of each the groups of columns. // (n, depth) -> (n, out)
#[allow(unsafe_code)]
fn product<N: Number>(sides: &Sides<N>, layer: &Layer, run: impl Fn(Task<N>) + Sync) -> Vec<f32> {
    let &Sides { x, n, panels, depth, rows, columns } = sides;
    let outputs = layer.bias.len();
    // Large and written once: filling it with zeros first would cost a pass over memory.
    let mut y: Vec<f32> = Vec::with_capacity(n * outputs);
    let to = &mut y.spare_capacity_mut()[..n * outputs];
    let work = n * depth * outputs;
    // Of a small product, smaller groups, so that every thread has some.
    let blocks = n.div_ceil(BLOCK);
    let group = outputs.div_ceil((2 * rayon::current_num_threads()).div_ceil(blocks));
    let group = group.next_multiple_of(columns).min(GROUP);
    let block = |(x, y): (&[N], &mut [MaybeUninit<f32>])| {
        let x = &*whole_tiles(x, depth, rows);
        // What is written by whom: for each group, its columns of every row.
        let mut groups: Vec<Vec<&mut [MaybeUninit<f32>]>> =
            (0..outputs.div_ceil(group)).map(|_| Vec::with_capacity(BLOCK)).collect();
        for row in y.chunks_exact_mut(outputs) {
            for (group, part) in groups.iter_mut().zip(row.chunks_mut(group)) {
                group.push(part);
            }
        }
        let task = |(g, mut y): (usize, Vec<&mut [MaybeUninit<f32>]>)| {
            let bias = &layer.bias[g * group..][..y[0].len()];
            let panels = &panels[g * group * depth..][..bias.len().next_multiple_of(columns) * depth];
            run(Task { x, panels, depth, bias, then: layer.then, y: &mut y });
        };
        if work <= SMALL {
            groups.into_iter().enumerate().for_each(task);
        } else {
            groups.into_par_iter().enumerate().for_each(task);
        }
    };
    if work <= SMALL {
        x.chunks(BLOCK * depth).zip(to.chunks_mut(BLOCK * outputs)).for_each(block);
    } else {
        x.par_chunks(BLOCK * depth).zip(to.par_chunks_mut(BLOCK * outputs)).for_each(block);
    }
    // SAFETY: there is room for all rows, and every task has written all of its columns of all of its rows; together
    // these are all.
    unsafe { y.set_len(n * outputs) };
    y
}

/// Rows filled up with zeros to whole tiles.
fn whole_tiles<N: Number>(x: &[N], depth: usize, rows: usize) -> Cow<'_, [N]> {
    let count = x.len() / depth;
    if count.is_multiple_of(rows) {
        return Cow::Borrowed(x);
    }
    let mut filled = vec![N::default(); count.next_multiple_of(rows) * depth];
    filled[..x.len()].copy_from_slice(x);
    Cow::Owned(filled)
}

/// A block of rows times a group of columns.
struct Task<'a, 'y, N> {
    x: &'a [N],      // (rows of whole tiles, depth)
    panels: &'a [N], // (panels, depth, columns)
    depth: usize,
    bias: &'a [f32],
    then: Activation,
    y: &'a mut [&'y mut [MaybeUninit<f32>]],
}

impl Kernel for Task<'_, '_, f32> {
    type Output = ();

    fn plain(self) {
        let Task { x, panels, depth, bias, then, y } = self;
        for (x, y) in x.chunks_exact(depth).zip(y) {
            let sum = |(bias, w): (&f32, &[f32])| x.iter().zip(w).fold(*bias, |sum, (x, w)| sum + x * w);
            let sums: Vec<f32> =
                bias.iter().zip(panels.chunks_exact(depth)).map(sum).map(|sum| then.plain(sum)).collect();
            write(&sums, y);
        }
    }

    #[inline(always)]
    fn fast<S: Tiles>(self, simd: S) {
        self.run(simd, F32(simd));
    }
}

/// The same with products of pairs.
struct OfPairs<'a, 'y>(Task<'a, 'y, Pair>, PairTile);

impl Kernel for OfPairs<'_, '_> {
    type Output = ();

    /// Without vectors there are no pairs either, so that nobody asks.
    fn plain(self) {
        unreachable!("pairs are multiplied in vectors")
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        struct Run<'a, 'y, S>(Task<'a, 'y, Pair>, S);

        impl<S: Simd> WithProducts for Run<'_, '_, S> {
            type Output = ();

            #[inline(always)]
            fn run<P: Products<Number = Pair>>(self, products: P) {
                self.0.run(self.1, products);
            }
        }
        self.1.enter(Run(self.0, simd));
    }
}

impl<N: Number> Task<'_, '_, N> {
    /// * `products` - the kind that the panels are made for
    #[inline(always)]
    fn run<S: Simd, P: Products<Number = N>>(self, simd: S, mut products: P) {
        let (Task { x, panels, depth, bias, then, y }, columns) = (self, P::COLUMNS);
        let (Units { rows, step }, apart) = (P::UNITS, P::packed(depth));
        let width = bias.len().next_multiple_of(columns);
        let mut sums = vec![0.0; y.len().next_multiple_of(rows) * width];
        for sums in sums.chunks_exact_mut(width).take(y.len()) {
            sums[..bias.len()].copy_from_slice(bias);
        }
        for first in (0..depth).step_by(DEPTH) {
            let piece = first..depth.min(first + DEPTH);
            for (p, panel) in panels.chunks_exact(columns * depth).enumerate() {
                let panel = &panel[piece.start * columns..piece.end * columns];
                for i in (0..y.len()).step_by(rows) {
                    let (x, sums) = (&x[i * depth..], &mut sums[i * width + p * columns..]);
                    products.tile(&x[piece.start / step * apart.step..], apart, panel, Onto::Sums, sums, width);
                }
            }
        }
        for (y, sums) in y.iter_mut().zip(sums.chunks_exact_mut(width)) {
            if then != Activation::None {
                for sums in sums.chunks_exact_mut(S::LANES) {
                    simd.store(then.fast(simd, simd.load(sums)), sums);
                }
            }
            write(&sums[..y.len()], y);
        }
    }
}

/// All of a row.
#[inline(always)]
fn write(from: &[f32], to: &mut [MaybeUninit<f32>]) {
    assert_eq!(from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(to, from)| {
        to.write(*from);
    });
}

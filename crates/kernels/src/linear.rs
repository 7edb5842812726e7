//! Product with a matrix of weights, in f32 or with what is multiplied rounded to bf16.
//!
//! Rows of the matrix are read as they are needed, from whatever they are kept in, and packed in panels of a tile's columns. Then blocks
//! of activations meet groups of panels: the block stays in the second cache while a piece of a panel passes by, the sums of a tile in
//! registers (Goto and van de Geijn 2008, doi 10.1145/1356052.1356053). AVX-512 BF16 multiplies two pairs of bf16 and adds both products
//! to an f32 in one instruction, twice the work of f32's; without it, the rounded numbers are multiplied in f32, so that results differ
//! by the rounding of sums only.
//!
//! Each sum is one chain over the inputs, whatever block or group it falls into.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Deref;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::level::{Kernel, Level};
use crate::panel::{Number, Pair, turn};
use crate::simd::Simd;
use crate::storage::contiguous;
use crate::tile::{F32, Onto, PAIR_COLUMNS, PairTile, Products, Tiles, Units, WithProducts, bf16_bits};

/// Rows of activations in a block: a multiple of every tile's rows.
const BLOCK: usize = 96;
/// Most columns of the result in a group: a multiple of every tile's columns.
const GROUP: usize = 256;
/// Numbers of a panel's column in a piece, which a block meets at a time. Shorter ones would stay in the first cache, but putting a
/// tile's sums away and fetching them again costs more than that gains.
const DEPTH: usize = 768;
/// Below so many multiplications, threads are not worth it.
const SMALL: usize = 1 << 20;

/// What is multiplied; sums are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Both sides rounded to bf16.
    Bf16,
}

/// A matrix of weights whose rows are read when they are needed.
pub trait Rows: Sync {
    /// Rows and columns: outputs and inputs of the layer.
    fn dims(&self) -> (usize, usize);

    /// Rows from the first one on, as many as there is room for. // (n, in)
    fn read(&self, first: usize, to: &mut [f32]) -> Result<()>;

    /// The same rounded to bf16. // (n, in)
    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> Result<()> {
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        round(&wide, to);
        Ok(())
    }

    /// All rows as f32 in panels of so many columns, if they are kept so.
    fn panels(&self, _columns: usize) -> Option<&[f32]> {
        None
    }

    /// The same as pairs of bf16, filled up with zeros to a depth that is a multiple of `step` pairs.
    fn pair_panels(&self, _columns: usize, _step: usize) -> Option<&[u32]> {
        None
    }
}

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

/// What a panel of weights is made of.
trait Weight: Number {
    /// Rows of a matrix, each filled up to `depth`.
    fn read(w: &dyn Rows, first: usize, depth: usize, to: &mut [Self]) -> Result<()>;
    /// All of them, if they are there in panels.
    fn there(w: &dyn Rows, columns: usize, step: usize) -> Option<&[Self]>;
}

impl Weight for f32 {
    fn read(w: &dyn Rows, first: usize, _: usize, to: &mut [f32]) -> Result<()> {
        w.read(first, to)
    }

    fn there(w: &dyn Rows, columns: usize, _: usize) -> Option<&[f32]> {
        w.panels(columns)
    }
}

impl Weight for Pair {
    fn read(w: &dyn Rows, first: usize, depth: usize, to: &mut [Pair]) -> Result<()> {
        let inputs = w.dims().1;
        if inputs == 2 * depth {
            return w.read_bf16(first, halves(to));
        }
        let mut rows = vec![bf16::ZERO; to.len() / depth * inputs];
        w.read_bf16(first, &mut rows)?;
        for (to, row) in halves(to).chunks_exact_mut(2 * depth).zip(rows.chunks_exact(inputs)) {
            to[..inputs].copy_from_slice(row);
        }
        Ok(())
    }

    fn there(w: &dyn Rows, columns: usize, step: usize) -> Option<&[Pair]> {
        w.pair_panels(columns, step)
    }
}

/// Pairs as single numbers. Where there are pairs, the lower half of a word comes first.
#[allow(unsafe_code)]
fn halves(pairs: &mut [Pair]) -> &mut [bf16] {
    // SAFETY: the same bytes: a pair has the size of two bf16 and is aligned more strictly, and all bits are a number of either.
    unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast(), 2 * pairs.len()) }
}

/// All rows of a matrix, in panels, filled up with zeros to whole steps. // (panels, row, columns)
fn panels<N: Weight>(w: &dyn Rows, columns: usize, step: usize) -> Result<Cow<'_, [N]>> {
    if let Some(panels) = N::there(w, columns, step) {
        return Ok(Cow::Borrowed(panels));
    }
    let (outputs, inputs) = w.dims();
    let depth = N::row(inputs).next_multiple_of(step);
    let mut panels = vec![N::default(); outputs.next_multiple_of(columns) * depth];
    let pack = |(p, panel): (usize, &mut [N])| -> Result<()> {
        let mut rows = vec![N::default(); columns.min(outputs - p * columns) * depth];
        N::read(w, p * columns, depth, &mut rows)?;
        turn(&rows, depth, panel, columns);
        Ok(())
    };
    if outputs * inputs <= SMALL {
        panels.chunks_mut(columns * depth).enumerate().try_for_each(pack)?;
    } else {
        panels.par_chunks_mut(columns * depth).enumerate().try_for_each(pack)?;
    }
    Ok(Cow::Owned(panels))
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

/// Rounded to bf16.
fn round(from: &[f32], to: &mut [bf16]) {
    struct Round<'a>(&'a [f32], &'a mut [bf16]);

    impl Kernel for Round<'_> {
        type Output = ();

        #[inline(always)]
        fn plain(self) {
            self.1.iter_mut().zip(self.0).for_each(|(to, from)| *to = bf16::from_bits(bf16_bits(*from)));
        }

        #[inline(always)]
        fn fast<S: Simd>(self, _: S) {
            self.plain();
        }
    }
    Level::current().run(Round(from, to));
}

/// Rounded to bf16 and back.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

/// A matrix rounded to bf16.
struct Rounded<'a>(&'a dyn Rows);

impl Rows for Rounded<'_> {
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        let mut narrow = vec![bf16::ZERO; to.len()];
        self.0.read_bf16(first, &mut narrow)?;
        narrow.convert_to_f32_slice(to);
        Ok(())
    }
}

/// Products in f32. // (n, in) -> (n, out)
fn product_f32(level: Level, x: &[f32], w: &dyn Rows, layer: &Layer) -> Result<Vec<f32>> {
    let (units, columns) = level.tile_f32();
    let depth = w.dims().1;
    let panels = panels::<f32>(w, columns, units.step)?;
    let sides = Sides { x, n: x.len() / depth, panels: &panels, depth, rows: units.rows, columns };
    Ok(product(&sides, layer, |task| level.run(task)))
}

/// Products of what is rounded to bf16. // (n, in) -> (n, out)
fn product_bf16(level: Level, tile: PairTile, x: &[f32], w: &dyn Rows, layer: &Layer) -> Result<Vec<f32>> {
    let (Units { rows, step }, inputs) = (tile.units(), w.dims().1);
    let (panels, pairs) = (panels::<Pair>(w, PAIR_COLUMNS, step)?, pairs(tile, x, inputs));
    let depth = Pair::row(inputs).next_multiple_of(step);
    let sides = Sides { x: &pairs, n: x.len() / inputs, panels: &panels, depth, rows, columns: PAIR_COLUMNS };
    Ok(product(&sides, layer, |task| level.run(OfPairs(task, tile))))
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
        let task = |(g, y): (usize, Vec<&mut [MaybeUninit<f32>]>)| {
            let bias = &layer.bias[g * group..][..y[0].len()];
            let panels = &panels[g * group * depth..][..bias.len().next_multiple_of(columns) * depth];
            run(Task { x, panels, depth, bias, then: layer.then, y });
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
    // SAFETY: there is room for all rows, and every task has written all of its columns of all of its rows; together these are all.
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
    y: Vec<&'y mut [MaybeUninit<f32>]>,
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

    /// Without vectors there are no pairs either.
    fn plain(self) {}

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
        for (y, sums) in y.into_iter().zip(sums.chunks_exact_mut(width)) {
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

/// A contiguous tensor (out, in) in main memory, f32, bf16 or f16, as the rows of a matrix.
pub fn dense(w: &Tensor) -> Result<impl Rows + '_> {
    let (storage, layout) = w.storage_and_layout();
    let known = matches!(w.dtype(), DType::F32 | DType::BF16 | DType::F16);
    if !layout.is_contiguous() || !w.device().is_cpu() || !known {
        bail!("linear: w {:?} {:?} {layout:?}", w.dtype(), w.device());
    }
    Ok(Dense { storage, layout, dims: w.dims2()? })
}

struct Dense<'a, S> {
    storage: S,
    layout: &'a Layout,
    dims: (usize, usize),
}

impl<S: Deref<Target = Storage>> Dense<'_, S> {
    fn part<T: WithDType>(&self, first: usize, count: usize) -> Result<Option<&[T]>> {
        let Storage::Cpu(storage) = &*self.storage else { bail!("linear: w is on another device") };
        let start = self.layout.start_offset() + first * self.dims.1;
        match T::DTYPE == storage.dtype() {
            true => Ok(Some(&storage.as_slice::<T>()?[start..start + count])),
            false => Ok(None),
        }
    }
}

impl<S: Deref<Target = Storage> + Sync> Rows for Dense<'_, S> {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        if let Some(rows) = self.part::<f32>(first, to.len())? {
            to.copy_from_slice(rows);
        } else if let Some(rows) = self.part::<bf16>(first, to.len())? {
            rows.convert_to_f32_slice(to);
        } else if let Some(rows) = self.part::<f16>(first, to.len())? {
            rows.convert_to_f32_slice(to);
        }
        Ok(())
    }

    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> Result<()> {
        if let Some(rows) = self.part::<bf16>(first, to.len())? {
            to.copy_from_slice(rows);
            return Ok(());
        }
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        round(&wide, to);
        Ok(())
    }
}

/// A matrix that is used again and again, kept in panels as products of a precision at the current level read it.
#[derive(Debug)]
pub struct Panels {
    numbers: Numbers, // (panels, depth, columns)
    columns: usize,
    depth: usize,
    dims: (usize, usize),
}

#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    Pairs(Vec<Pair>),
}

impl Panels {
    /// Packs a matrix. For products of bf16 it is rounded, where the level has an instruction for them.
    pub fn new(w: &dyn Rows, precision: Precision) -> Result<Self> {
        let (level, dims) = (Level::current(), w.dims());
        Ok(match level.pair_tile().filter(|_| precision == Precision::Bf16) {
            Some(tile) => {
                let step = tile.units().step;
                let numbers = Numbers::Pairs(panels(w, PAIR_COLUMNS, step)?.into_owned());
                Panels { numbers, columns: PAIR_COLUMNS, depth: Pair::row(dims.1).next_multiple_of(step), dims }
            }
            None => {
                let columns = level.tile_f32().1;
                Panels { numbers: Numbers::F32(panels(w, columns, 1)?.into_owned()), columns, depth: dims.1, dims }
            }
        })
    }

    /// Columns of the panels from a row of the matrix on, number by number, to rows.
    fn rows<N: Number, T>(&self, panels: &[N], first: usize, to: &mut [T], write: impl Fn(&mut [T], N)) {
        let each = self.dims.1.div_ceil(N::row(self.dims.1).max(1)).max(1);
        for (j, row) in (first..).zip(to.chunks_exact_mut(self.dims.1.max(1))) {
            let panel = &panels[j / self.columns * self.columns * self.depth..];
            let column = panel[j % self.columns..].iter().step_by(self.columns);
            row.chunks_mut(each).zip(column).for_each(|(to, number)| write(to, *number));
        }
    }
}

impl Rows for Panels {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        match &self.numbers {
            Numbers::F32(numbers) => self.rows(numbers, first, to, |to, number| to[0] = number),
            Numbers::Pairs(pairs) => self.rows(pairs, first, to, |to, pair| {
                to.iter_mut().zip([pair << 16, pair & 0xffff_0000]).for_each(|(to, bits)| *to = f32::from_bits(bits));
            }),
        }
        Ok(())
    }

    fn panels(&self, columns: usize) -> Option<&[f32]> {
        match &self.numbers {
            Numbers::F32(numbers) if columns == self.columns => Some(numbers),
            _ => None,
        }
    }

    fn pair_panels(&self, columns: usize, step: usize) -> Option<&[u32]> {
        match &self.numbers {
            Numbers::Pairs(pairs)
                if columns == self.columns && self.depth == Pair::row(self.dims.1).next_multiple_of(step) =>
            {
                Some(pairs)
            }
            _ => None,
        }
    }
}

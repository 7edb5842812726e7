//! Scaled dot-product attention that never holds more than a small block of scores (Dao et al. 2022, arXiv 2205.14135;
//! Milakov and Gimelshein 2018, arXiv 1805.02867).
//!
//! A few queries at a time meet a block of keys: their scores are a tile product and fit the innermost cache, where
//! they become exponentials against the greatest score so far, and weigh the values of the block in a second tile
//! product. When a later block has a greater score, what was added up before is scaled down on the way. A block of keys
//! and values stays in the second cache while all queries of a task pass by; keys and values are packed once a head, in
//! the order in which they are read.
//!
//! Queries are computed independently of each other, in the same order whatever task they fall into.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::level::{Kernel, Level};
use crate::panel::{Number, Pair, turn};
use crate::parallel::SMALL;
use crate::precision::Precision;
use crate::simd::Simd;
use crate::softmax::{base, exponentials, exponentials_for_bf16, greatest, share, softmax_last_dim};
use crate::storage::{Heads, in_memory};
use crate::tile::{F32, MAX_ROWS, Onto, PAIR_COLUMNS, PairTile, Products, Tiles, Units, WithProducts, pair};

/// Pairs of a row that are rounded together.
const STEP: usize = 16;
/// Keys in a block. A multiple of every tile's columns, and of pairs of its steps.
const KEYS: usize = 256;
/// Queries of a task: a multiple of every tile's rows.
const QUERIES: usize = 96;
/// The same of products of pairs, which would wait for keys and values if there were fewer.
const PAIR_QUERIES: usize = 192;

/// `softmax(scale q k^T + bias) v` for every head.
///
/// * `q` - (heads, n, d), `k` - (heads, m, d), `v` - (heads, m, d), with any strides of heads and tokens
/// * `bias` - broadcast to (heads, n, m), may hold `-inf`
///
/// Returns (n, heads * d), ready for the output projection. A query that may attend to nothing gets zeros. With
/// [`Precision::Bf16`], what is multiplied is rounded: queries times `scale`, keys, values, and the weights of the
/// values.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let (heads, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    if k.dims() != [heads, m, d] || v.dims() != [heads, m, d] {
        bail!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    let bias = bias.map(|bias| bias.broadcast_as((heads, n, m))).transpose()?;
    #[cfg(feature = "cuda")]
    if precision == Precision::Bf16 && crate::cuda::has_attention(&[q, k, v]) {
        let bias = bias.map(|bias| Heads::tensor(&bias.to_dtype(DType::F32)?)).transpose()?;
        let [q, k, v] = crate::cuda::operands([q, k, v], bias.is_some())?;
        let op = Op { scale: scale as f32, bias, precision, level: Level::current() };
        return q.apply_op3_no_bwd(&k, &v, &op);
    }
    if [q, k, v].into_iter().chain(&bias).any(|tensor| !in_memory(&[tensor])) {
        return by_matmul(q, k, v, scale, bias.as_ref());
    }
    let bias = bias.as_ref().map(Heads::tensor).transpose()?;
    let [q, k, v] = [q, k, v].map(Heads::tensor);
    q?.apply_op3_no_bwd(&k?, &v?, &Op { scale: scale as f32, bias, precision, level: Level::current() })
}

/// For tensors that there is no kernel for, on any device. Narrow ones are widened: scores need the digits.
fn by_matmul(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let wide = |x: &Tensor| if x.dtype().size_in_bytes() < 4 { x.to_dtype(DType::F32) } else { Ok(x.clone()) };
    let (q, k, v) = (wide(q)?, wide(k)?, wide(v)?);
    // Scores are computed for so many bytes of queries at a time: memory stays bounded whatever the number of tokens.
    let most_bytes = if q.device().is_cpu() { 64 << 20 } else { 1 << 30 };
    let (heads, n, d) = q.dims3()?;
    let rows = (most_bytes / (4 * heads * k.dim(1)?).max(1)).clamp(1, n.max(1));
    let (keys, v) = (k.t()?.contiguous()?, v.contiguous()?); // (heads, d, m), (heads, m, d)
    let mut chunks = Vec::with_capacity(n.div_ceil(rows));
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        let mut scores = (q.narrow(1, first, rows)?.contiguous()? * scale)?.matmul(&keys)?; // (heads, rows, m)
        if let Some(bias) = bias {
            scores = (scores + bias.narrow(1, first, rows)?)?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?; // (heads, rows, d)
        chunks.push(mixed.transpose(0, 1)?.reshape((rows, heads * d))?);
    }
    Tensor::cat(&chunks, 0)
}

struct Op {
    scale: f32,
    bias: Option<Tensor>, // (heads, n, m)
    precision: Precision,
    level: Level,
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (heads, n, d) = q_layout.shape().dims3()?;
        let m = k_layout.shape().dims()[1];
        let bias_storage = self.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = match &bias_storage {
            Some((storage, layout)) => match &**storage {
                Storage::Cpu(storage) => Some(Heads::new(storage, layout)?),
                _ => bail!("attention: the bias is on another device"),
            },
            None => None,
        };
        let inputs = Inputs {
            q: Heads::new(q, q_layout)?,
            k: Heads::new(k, k_layout)?,
            v: Heads::new(v, v_layout)?,
            bias,
            scale: self.scale,
            m,
            precision: self.precision,
        };
        let mut y = vec![0.0; n * heads * d];
        if m > 0 && !y.is_empty() {
            let level = self.level;
            match level.pair_tile().filter(|_| self.precision == Precision::Bf16) {
                Some(tile) => run(
                    &inputs,
                    &mut y,
                    ([heads, n, d], PAIR_QUERIES),
                    |head| level.run(PackPairs { inputs: &inputs, head, tile }),
                    |task| level.run(OfPairs(task, tile)),
                ),
                None => run(
                    &inputs,
                    &mut y,
                    ([heads, n, d], QUERIES),
                    |head| {
                        let convert = |row: &[f32], to: &mut [f32]| copy(self.precision, row, to);
                        let sides = (1, level.tile_f32().1);
                        pack(&inputs, head, sides, convert, |row, _, to| convert(row, to))
                    },
                    |task| level.run(task),
                ),
            }
        }
        Ok((CpuStorage::F32(y), (n, heads * d).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        crate::cuda::attention([(q, q_layout), (k, k_layout), (v, v_layout)], self.scale, self.bias.as_ref())
    }
}

/// Everything that a task reads.
struct Inputs<'a> {
    q: Heads<'a>,            // (heads, n, d)
    k: Heads<'a>,            // (heads, m, d)
    v: Heads<'a>,            // (heads, m, d)
    bias: Option<Heads<'a>>, // (heads, n, m)
    scale: f32,
    m: usize,
    precision: Precision,
}

/// Shares the work out: first the packing of each head, then the queries of a head in tasks.
fn run<N: Number>(
    inputs: &Inputs,
    y: &mut [f32],
    ([heads, n, d], queries): ([usize; 3], usize),
    pack: impl Fn(usize) -> Packed<N> + Sync,
    run: impl Fn(Task<N>) + Sync,
) {
    // What is written by whom: for each head, its columns of every row.
    let mut columns: Vec<Vec<&mut [f32]>> = (0..heads).map(|_| Vec::with_capacity(n)).collect();
    for row in y.chunks_exact_mut(heads * d) {
        for (columns, part) in columns.iter_mut().zip(row.chunks_exact_mut(d)) {
            columns.push(part);
        }
    }
    let head = |(head, mut columns): (usize, Vec<&mut [f32]>), threads: bool| {
        let packed = pack(head);
        let task = |(i, y): (usize, &mut [&mut [f32]])| {
            run(Task { inputs, packed: &packed, head, first: i * queries, y });
        };
        if threads {
            columns.par_chunks_mut(queries).enumerate().for_each(task);
        } else {
            columns.chunks_mut(queries).enumerate().for_each(task);
        }
    };
    let work = n * inputs.m * d;
    if heads * work <= SMALL {
        columns.into_iter().enumerate().for_each(|columns| head(columns, false));
    } else {
        columns.into_par_iter().enumerate().for_each(|columns| head(columns, work > SMALL));
    }
}

/// Keys and values of a head, in panels of a tile's columns; filled up with zeros.
struct Packed<N> {
    keys: Vec<N>,   // (keys / columns, numbers of d, columns)
    values: Vec<N>, // (d / columns, numbers of all keys, columns)
}

/// Packs a head for products of pairs.
struct PackPairs<'a> {
    inputs: &'a Inputs<'a>,
    head: usize,
    tile: PairTile,
}

impl Kernel for PackPairs<'_> {
    type Output = Packed<Pair>;

    #[inline(always)]
    fn plain(self) -> Packed<Pair> {
        let PackPairs { inputs, head, tile } = self;
        pack(inputs, head, (tile.units().step, PAIR_COLUMNS), |row, to| tile.round(row, to, STEP), pairs)
    }

    #[inline(always)]
    fn fast<S: Simd>(self, _: S) -> Packed<Pair> {
        self.plain()
    }
}

/// * `step`, `columns` - of a tile
/// * `convert` - a row of f32 to what is multiplied
/// * `weave` - packs one row of V (f32) or two rows (pairs of bf16) into a panel
#[inline(always)]
fn pack<N: Number>(
    inputs: &Inputs,
    head: usize,
    (step, columns): (usize, usize),
    convert: impl Fn(&[f32], &mut [N]),
    weave: impl Fn(&[f32], Option<&[f32]>, &mut [N]),
) -> Packed<N> {
    let Inputs { k, v, m, .. } = inputs;
    let [depth, height] = [k.width, *m].map(|count| N::row(count).next_multiple_of(step));
    let d = k.width;
    let mut keys = vec![N::default(); m.next_multiple_of(columns) * depth];
    let mut rows = vec![N::default(); columns * depth];
    for (p, panel) in keys.chunks_exact_mut(columns * depth).enumerate() {
        let count = columns.min(m - p * columns);
        for (j, row) in rows.chunks_exact_mut(depth).take(count).enumerate() {
            convert(k.row(head, p * columns + j), row);
        }
        turn(&rows[..count * depth], depth, panel, columns);
    }
    let mut values = vec![N::default(); d.next_multiple_of(columns) * height];
    let each = 2 / N::row(2);
    for (p, panel) in values.chunks_exact_mut(columns * height).enumerate() {
        let channels = p * columns..d.min((p + 1) * columns);
        for (j, to) in panel.chunks_exact_mut(columns).enumerate() {
            let row = |j: usize| (j < *m).then(|| &v.row(head, j)[channels.clone()]);
            weave(row(each * j).unwrap_or_default(), row(each * j + 1), &mut to[..channels.len()]);
        }
    }
    Packed { keys, values }
}

/// Pairs of one row and the one below it, or zeros.
#[inline(always)]
fn pairs(first: &[f32], second: Option<&[f32]>, to: &mut [Pair]) {
    match second {
        Some(second) => to.iter_mut().zip(first).zip(second).for_each(|((to, a), b)| *to = pair(*a, *b)),
        None => to.iter_mut().zip(first).for_each(|(to, a)| *to = pair(*a, 0.0)),
    }
}

/// The same numbers, rounded to bf16 if that is the precision.
#[inline(always)]
fn copy(precision: Precision, from: &[f32], to: &mut [f32]) {
    to.copy_from_slice(from);
    round(precision, to);
}

#[inline(always)]
fn round(precision: Precision, x: &mut [f32]) {
    if precision == Precision::Bf16 {
        x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
}

/// Some queries of a head, from the first one.
struct Task<'a, 'y, N> {
    inputs: &'a Inputs<'a>,
    packed: &'a Packed<N>,
    head: usize,
    first: usize,
    y: &'a mut [&'y mut [f32]], // (queries, d)
}

impl Kernel for Task<'_, '_, f32> {
    type Output = ();

    fn plain(self) {
        let Task { inputs: Inputs { q, k, v, bias, scale, m, precision }, head, first, y, .. } = self;
        let rounded = |row: &[f32]| {
            let mut row = row.to_vec();
            round(*precision, &mut row);
            row
        };
        for (i, y) in (first..).zip(y) {
            let q = rounded(&q.row(head, i).iter().map(|q| q * scale).collect::<Vec<_>>());
            let mut scores: Vec<f32> = (0..*m)
                .map(|j| {
                    let score = q.iter().zip(rounded(k.row(head, j))).map(|(q, k)| q * k).sum::<f32>();
                    score + bias.map_or(0.0, |bias| bias.row(head, i)[j])
                })
                .collect();
            let base = base(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            scores.iter_mut().for_each(|score| *score = (*score - base).exp());
            let share = share(scores.iter().sum());
            for (j, score) in rounded(&scores).iter().enumerate() {
                for (y, v) in y.iter_mut().zip(rounded(v.row(head, j))) {
                    *y += score * share * v;
                }
            }
        }
    }

    #[inline(always)]
    fn fast<S: Tiles>(self, simd: S) {
        let precision = self.inputs.precision;
        let convert = |row: &[f32], to: &mut [f32]| copy(precision, row, to);
        self.run(simd, F32(simd), convert);
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
        struct Run<'a, 'y, S>(Task<'a, 'y, Pair>, S, PairTile);

        impl<S: Simd> WithProducts for Run<'_, '_, S> {
            type Output = ();

            #[inline(always)]
            fn run<P: Products<Number = Pair>>(self, products: P) {
                let Run(task, simd, tile) = self;
                task.run(simd, products, |row, to| tile.round(row, to, STEP));
            }
        }
        self.1.enter(Run(self.0, simd, self.1));
    }
}

impl<N: Number> Task<'_, '_, N> {
    /// * `convert` - a row of f32 to what is multiplied
    #[inline(always)]
    fn run<S: Simd, P: Products<Number = N>>(self, simd: S, mut products: P, convert: impl Fn(&[f32], &mut [N])) {
        let Task { inputs: Inputs { q, bias, scale, m, precision, .. }, packed, head, first, y } = self;
        let (Units { rows, step }, columns, m, d) = (P::UNITS, P::COLUMNS, *m, q.width);
        let [depth, height] = [d, m].map(|count| N::row(count).next_multiple_of(step));
        let (width, count) = (d.next_multiple_of(columns), y.len().next_multiple_of(rows));
        let mut queries = vec![N::default(); count * depth];
        let mut scaled = vec![0.0; d];
        for (i, to) in queries.chunks_exact_mut(depth).take(y.len()).enumerate() {
            scaled.iter_mut().zip(q.row(head, first + i)).for_each(|(to, from)| *to = from * scale);
            convert(&scaled, to);
        }
        let mut sums = vec![Online { greatest: f32::NEG_INFINITY, sum: 0.0 }; count];
        let mut mixed = vec![0.0; count * width];
        let mut scores = [0.0; MAX_ROWS * KEYS];
        let mut weights = [N::default(); MAX_ROWS * KEYS];
        for block in (0..m).step_by(KEYS) {
            let keys = KEYS.min(m - block);
            let used = N::row(keys).next_multiple_of(step);
            for i in (0..count).step_by(rows) {
                let panels = packed.keys[block * depth..].chunks_exact(depth * columns);
                for (p, panel) in panels.take(keys.div_ceil(columns)).enumerate() {
                    let scores = &mut scores[p * columns..];
                    products.tile(&queries[i * depth..], P::rows(depth), panel, Onto::Nothing, scores, KEYS);
                }
                let mut keep = [1.0; MAX_ROWS];
                for r in 0..rows.min(y.len() - i) {
                    let scores = &mut scores[r * KEYS..r * KEYS + keys];
                    if let Some(bias) = bias {
                        add(simd, scores, &bias.row(head, first + i + r)[block..block + keys]);
                    }
                    keep[r] = sums[i + r].add(simd, scores, *precision);
                    convert(scores, &mut weights[r * KEYS..r * KEYS + used]);
                }
                for (p, panel) in packed.values.chunks_exact(height * columns).enumerate() {
                    let first = N::row(block);
                    let panel = &panel[first * columns..(first + used) * columns];
                    let mixed = &mut mixed[i * width + p * columns..];
                    products.tile(&weights, P::rows(KEYS), panel, Onto::Scaled(&keep), mixed, width);
                }
            }
        }
        for ((y, mixed), sums) in y.iter_mut().zip(mixed.chunks_exact(width)).zip(&sums) {
            let share = share(sums.sum);
            for (y, mixed) in y.iter_mut().zip(mixed) {
                *y = mixed * share;
            }
        }
    }
}

/// What is known of a query's scores so far.
#[derive(Clone, Copy)]
struct Online {
    greatest: f32,
    /// Of exponentials against the greatest.
    sum: f32,
}

impl Online {
    /// Turns a block of scores into exponentials and returns the factor that earlier ones change by.
    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, scores: &mut [f32], precision: Precision) -> f32 {
        let greatest = self.greatest.max(greatest(simd, scores));
        let base = base(greatest);
        let keep = if self.greatest == base { 1.0 } else { (self.greatest - base).exp() };
        let sum = match precision {
            Precision::F32 => exponentials(simd, scores, base),
            Precision::Bf16 => exponentials_for_bf16(simd, scores, base),
        };
        self.sum = self.sum * keep + sum;
        self.greatest = greatest;
        keep
    }
}

/// `x += y`
#[inline(always)]
fn add<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    let (mut x, mut y) = (x.chunks_exact_mut(S::LANES), y.chunks_exact(S::LANES));
    for (x, y) in (&mut x).zip(&mut y) {
        simd.store(simd.add(simd.load(x), simd.load(y)), x);
    }
    for (x, y) in x.into_remainder().iter_mut().zip(y.remainder()) {
        *x += y;
    }
}

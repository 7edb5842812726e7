//! Scaled dot-product attention that never holds more than a small block of scores (Dao et al. 2022, arXiv 2205.14135; Milakov and
//! Gimelshein 2018, arXiv 1805.02867).
//!
//! A few queries at a time meet a block of keys: their scores are a tile product and fit the innermost cache, where they become
//! exponentials against the greatest score so far, and weigh the values of the block in a second tile product. When a later block has
//! a greater score, what was added up before is scaled down on the way. A block of keys and values stays in the second cache while
//! all queries of a task pass by; keys and values are packed once a head, in the order in which they are read.
//!
//! Queries are computed independently of each other, in the same order whatever task they fall into.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::level::{Kernel, Level};
use crate::simd::{MAX_ROWS, Simd};
use crate::softmax::{base, exponentials, greatest, share, softmax_last_dim};
use crate::storage::{Heads, fit};

/// Keys in a block. A multiple of every tile's columns.
const KEYS: usize = 256;
/// Queries of a task.
const QUERIES: usize = 96;
/// Below so many multiplications, threads are not worth it.
const SMALL: usize = 1 << 20;

/// `softmax(scale q k^T + bias) v` for every head.
///
/// * `q` - (heads, n, d), `k` - (heads, m, d), `v` - (heads, m, d), with any strides of heads and tokens
/// * `bias` - broadcast to (heads, n, m), may hold `-inf`
///
/// Returns (n, heads * d), ready for the output projection. A query that may attend to nothing gets zeros.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let (heads, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    if k.dims() != [heads, m, d] || v.dims() != [heads, m, d] {
        bail!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    let bias = bias.map(|bias| bias.broadcast_as((heads, n, m))).transpose()?;
    #[cfg(feature = "cuda")]
    if crate::cuda::has_attention(&[q, k, v]) {
        let bias = bias.map(|bias| Heads::tensor(&bias.to_dtype(DType::F32)?)).transpose()?;
        let op = Op { scale: scale as f32, bias, level: Level::current() };
        return q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &op);
    }
    if [q, k, v].into_iter().chain(&bias).any(|tensor| !fit(&[tensor]) || !tensor.device().is_cpu()) {
        return by_matmul(q, k, v, scale, bias.as_ref());
    }
    let bias = bias.as_ref().map(Heads::tensor).transpose()?;
    let [q, k, v] = [q, k, v].map(Heads::tensor);
    q?.apply_op3_no_bwd(&k?, &v?, &Op { scale: scale as f32, bias, level: Level::current() })
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
        };
        let mut y = vec![0.0; n * heads * d];
        if m > 0 && !y.is_empty() {
            run(self.level, &inputs, &mut y, [heads, n, d]);
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
}

/// Shares the work out: first the packing of each head, then the queries of a head in tasks.
fn run(level: Level, inputs: &Inputs, y: &mut [f32], [heads, n, d]: [usize; 3]) {
    // What is written by whom: for each head, its columns of every row.
    let mut columns: Vec<Vec<&mut [f32]>> = (0..heads).map(|_| Vec::with_capacity(n)).collect();
    for row in y.chunks_exact_mut(heads * d) {
        for (columns, part) in columns.iter_mut().zip(row.chunks_exact_mut(d)) {
            columns.push(part);
        }
    }
    let head = |(head, mut columns): (usize, Vec<&mut [f32]>), threads: bool| {
        let packed = level.run(Pack { inputs, head, d });
        let task = |(i, y): (usize, &mut [&mut [f32]])| {
            level.run(Task { inputs, packed: &packed, head, first: i * QUERIES, y });
        };
        if threads {
            columns.par_chunks_mut(QUERIES).enumerate().for_each(task);
        } else {
            columns.chunks_mut(QUERIES).enumerate().for_each(task);
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
struct Packed {
    keys: Vec<f32>,   // (keys / columns, d, columns)
    values: Vec<f32>, // (d / columns, keys, columns)
}

struct Pack<'a> {
    inputs: &'a Inputs<'a>,
    head: usize,
    d: usize,
}

impl Kernel for Pack<'_> {
    type Output = Packed;

    /// Plain code reads keys and values where they are.
    fn plain(self) -> Packed {
        Packed { keys: Vec::new(), values: Vec::new() }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, _: S) -> Packed {
        let Pack { inputs: Inputs { k, v, m, .. }, head, d } = self;
        let (m, columns) = (*m, S::TILE_COLUMNS);
        let mut keys = vec![0.0; m.next_multiple_of(columns) * d];
        for (p, panel) in keys.chunks_exact_mut(d * columns).enumerate() {
            for j in 0..columns.min(m - p * columns) {
                for (i, number) in k.row(head, p * columns + j).iter().enumerate() {
                    panel[i * columns + j] = *number;
                }
            }
        }
        let mut values = vec![0.0; d.next_multiple_of(columns) * m];
        for (p, panel) in values.chunks_exact_mut(m * columns).enumerate() {
            let width = columns.min(d - p * columns);
            for (j, row) in panel.chunks_exact_mut(columns).enumerate() {
                row[..width].copy_from_slice(&v.row(head, j)[p * columns..p * columns + width]);
            }
        }
        Packed { keys, values }
    }
}

/// Some queries of a head, from the first one.
struct Task<'a, 'y> {
    inputs: &'a Inputs<'a>,
    packed: &'a Packed,
    head: usize,
    first: usize,
    y: &'a mut [&'y mut [f32]], // (queries, d)
}

impl Kernel for Task<'_, '_> {
    type Output = ();

    fn plain(self) {
        let Task { inputs: Inputs { q, k, v, bias, scale, m }, head, first, y, .. } = self;
        for (i, y) in (first..).zip(y) {
            let q = q.row(head, i);
            let mut scores: Vec<f32> = (0..*m)
                .map(|j| {
                    let score = q.iter().zip(k.row(head, j)).map(|(q, k)| q * scale * k).sum::<f32>();
                    score + bias.map_or(0.0, |bias| bias.row(head, i)[j])
                })
                .collect();
            let base = base(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            scores.iter_mut().for_each(|score| *score = (*score - base).exp());
            let share = share(scores.iter().sum());
            for (j, score) in scores.iter().enumerate() {
                for (y, v) in y.iter_mut().zip(v.row(head, j)) {
                    *y += score * share * v;
                }
            }
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let Task { inputs: Inputs { q, bias, scale, m, .. }, packed, head, first, y } = self;
        let (rows, columns, m, d) = (S::TILE_ROWS, S::TILE_COLUMNS, *m, q.width);
        let width = d.next_multiple_of(columns);
        let height = y.len().next_multiple_of(rows);
        let mut queries = vec![0.0; height * d];
        for (i, to) in queries.chunks_exact_mut(d).take(y.len()).enumerate() {
            for (to, from) in to.iter_mut().zip(q.row(head, first + i)) {
                *to = from * scale;
            }
        }
        let mut sums = vec![Online { greatest: f32::NEG_INFINITY, sum: 0.0 }; height];
        let mut mixed = vec![0.0; height * width];
        let mut scores = [0.0; MAX_ROWS * KEYS];
        for block in (0..m).step_by(KEYS) {
            let keys = KEYS.min(m - block);
            for i in (0..height).step_by(rows) {
                let panels = packed.keys[block * d..].chunks_exact(d * columns);
                for (p, panel) in panels.take(keys.div_ceil(columns)).enumerate() {
                    simd.tile(&queries[i * d..], d, panel, None, &mut scores[p * columns..], KEYS);
                }
                let mut keep = [1.0; MAX_ROWS];
                for r in 0..rows.min(y.len() - i) {
                    let scores = &mut scores[r * KEYS..r * KEYS + keys];
                    if let Some(bias) = bias {
                        add(simd, scores, &bias.row(head, first + i + r)[block..block + keys]);
                    }
                    keep[r] = sums[i + r].add(simd, scores);
                }
                for (p, panel) in packed.values.chunks_exact(m * columns).enumerate() {
                    let panel = &panel[block * columns..(block + keys) * columns];
                    simd.tile(&scores, KEYS, panel, Some(&keep), &mut mixed[i * width + p * columns..], width);
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
    fn add<S: Simd>(&mut self, simd: S, scores: &mut [f32]) -> f32 {
        let greatest = self.greatest.max(greatest(simd, scores));
        let base = base(greatest);
        let keep = (self.greatest - base).exp();
        self.sum = self.sum * keep + exponentials(simd, scores, base);
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

//! Scaled dot-product attention.

use candle_core::{Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::Result;

/// Scores are computed for so many bytes of queries at a time: memory stays bounded whatever the number of tokens.
const SCORES_BYTES: usize = 64 << 20;

/// `softmax(scale q k^T + bias) v` for every head.
///
/// * `q` - (heads, n, d), `k` - (heads, m, d), `v` - (heads, m, d)
/// * `bias` - (heads, n, m)
///
/// Returns (n, heads * d), ready for the output projection.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let (heads, n, d) = q.dims3()?;
    let m = k.dim(1)?;
    let rows = (SCORES_BYTES / (4 * heads * m)).clamp(1, n);
    let keys = k.t()?; // (heads, d, m)
    let mut chunks = Vec::with_capacity(n.div_ceil(rows));
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        let queries = (q.narrow(1, first, rows)? * scale)?;
        let mut scores = queries.matmul(&keys)?; // (heads, rows, m)
        if let Some(bias) = bias {
            scores = (scores + bias.narrow(1, first, rows)?)?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(v)?; // (heads, rows, d)
        chunks.push(mixed.transpose(0, 1)?.reshape((rows, heads * d))?);
    }
    Ok(Tensor::cat(&chunks, 0)?)
}

/// Channels as heads: (n, heads * d) -> (heads, n, d).
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    Ok(x.reshape((x.dim(0)?, heads, ()))?.transpose(0, 1)?.contiguous()?)
}

/// A bias by which no token attends to a later one. // (heads, n, n)
pub fn causal_mask(heads: usize, n: usize, device: &Device) -> Result<Tensor> {
    let hidden: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(hidden, (1, n, n), device)?;
    Ok(mask.broadcast_as((heads, n, n))?.contiguous()?)
}

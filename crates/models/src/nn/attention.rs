//! Scaled dot-product attention.

use candle_core::{Device, Tensor};
use navicache_kernels::Precision;

use crate::Result;

/// `softmax(scale q k^T + bias) v` for every head.
///
/// * `q` - (heads, n, d), `k` - (heads, m, d), `v` - (heads, m, d)
/// * `bias` - (heads, n, m), or what can be broadcast to it
///
/// Returns (n, heads * d), ready for the output projection.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    Ok(navicache_kernels::attention(q, k, v, scale, bias, precision)?)
}

/// Channels as heads, without moving anything: (n, heads * d) -> (heads, n, d).
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    Ok(x.reshape((x.dim(0)?, heads, ()))?.transpose(0, 1)?)
}

/// A bias by which no token attends to a later one. // (heads, n, n)
pub fn causal_mask(heads: usize, n: usize, device: &Device) -> Result<Tensor> {
    let hidden: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(hidden, (1, n, n), device)?;
    Ok(mask.broadcast_as((heads, n, n))?.contiguous()?)
}

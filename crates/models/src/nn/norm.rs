//! Normalisation over the last dimension.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops;

use crate::{Result, Weights};

/// Layer norm, with or without its own scale and shift.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    scale: Tensor,
    shift: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    /// With scale and shift of its own.
    pub fn affine(dim: usize, epsilon: f64, w: Weights) -> Result<Self> {
        Ok(LayerNorm { scale: w.f32("weight", &[dim])?, shift: w.f32("bias", &[dim])?, epsilon: epsilon as f32 })
    }

    /// Without.
    pub fn plain(dim: usize, epsilon: f64, device: &Device) -> Result<Self> {
        let scale = Tensor::ones(dim, DType::F32, device)?;
        Ok(LayerNorm { shift: scale.zeros_like()?, scale, epsilon: epsilon as f32 })
    }

    /// (n, dim) -> (n, dim)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.scale, &self.shift, self.epsilon)?)
    }

    /// Normalises, then `(1 + scale) x + shift` with vectors from elsewhere (adaptive layer norm), in one pass. Its own scale
    /// and shift take no part.
    pub fn modulated(&self, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &(scale + 1.0)?, shift, self.epsilon)?)
    }
}

/// Root-mean-square norm with a scale.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    scale: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    /// A norm over `dim` channels.
    pub fn new(dim: usize, epsilon: f64, w: Weights) -> Result<Self> {
        Ok(RmsNorm { scale: w.f32("weight", &[dim])?, epsilon: epsilon as f32 })
    }

    /// (n, dim) -> (n, dim)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.scale, self.epsilon)?)
    }
}

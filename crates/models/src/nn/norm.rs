//! Normalisation over the last dimension.

use candle_core::{DType, Device, Tensor};
use navicache_kernels::{self as kernels, Activation};

use crate::{Result, Weights};

/// Layer norm, with or without its own scale and shift.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    scale: Tensor,
    shift: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// With scale and shift of its own.
    pub fn affine(dim: usize, epsilon: f64, w: Weights) -> Result<Self> {
        Ok(LayerNorm { scale: w.f32("weight", &[dim])?, shift: w.f32("bias", &[dim])?, epsilon })
    }

    /// Without.
    pub fn plain(dim: usize, epsilon: f64, device: &Device) -> Result<Self> {
        let scale = Tensor::ones(dim, DType::F32, device)?;
        Ok(LayerNorm { shift: scale.zeros_like()?, scale, epsilon })
    }

    /// (n, dim) -> (n, dim)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::layer_norm(x, &self.scale, &self.shift, self.epsilon)?)
    }

    /// Normalises, then `(1 + scale) x + shift` with vectors from elsewhere (adaptive layer norm), in one pass. Its own
    /// scale and shift take no part.
    pub fn modulated(&self, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
        Ok(kernels::modulated_layer_norm(x, scale, shift, self.epsilon)?)
    }
}

/// Root-mean-square norm with a scale.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    scale: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// A norm over `dim` channels.
    pub fn new(dim: usize, epsilon: f64, w: Weights) -> Result<Self> {
        Ok(RmsNorm { scale: w.f32("weight", &[dim])?, epsilon })
    }

    /// (n, dim) -> (n, dim)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::rms_norm(x, &self.scale, self.epsilon)?)
    }
}

/// Normalises groups of channels over all frames and pixels of a clip, with a scale and a shift for each channel.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    scale: Tensor, // (dim)
    shift: Tensor, // (dim)
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// A norm over `dim` channels in `groups`, of which `dim` is a multiple.
    pub fn new(dim: usize, groups: usize, epsilon: f64, w: Weights) -> Result<Self> {
        Ok(GroupNorm { scale: w.f32("weight", &[dim])?, shift: w.f32("bias", &[dim])?, groups, epsilon })
    }

    /// (frames, dim, h, w) -> (frames, dim, h, w)
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        Ok(kernels::group_norm(x, &self.scale, &self.shift, self.groups, self.epsilon, activation)?)
    }
}

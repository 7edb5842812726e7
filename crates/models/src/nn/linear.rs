//! Fully connected layer.

use candle_core::{DType, Tensor};
use navicache_kernels::linear_bf16;

use crate::{Matrix, Result, Weights};

/// `x W^T + b`.
///
/// The matrix may be kept in a narrower format than the activations, or on disk; it is then widened at every use, which costs about
/// a twentieth of the product and changes nothing of the result.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix, // (out, in)
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer with a bias.
    pub fn new(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        Ok(Linear { weight: w.matrix("weight", &[outputs, inputs])?, bias: Some(w.f32("bias", &[outputs])?) })
    }

    /// A layer without.
    pub fn without_bias(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        Ok(Linear { weight: w.matrix("weight", &[outputs, inputs])?, bias: None })
    }

    /// A layer whose matrix stays f32 whatever the weights are kept in, as the reference does for a few small ones.
    pub fn in_f32(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        Ok(Linear::from_tensors(w.f32("weight", &[outputs, inputs])?, w.f32("bias", &[outputs])?))
    }

    /// From a matrix (out, in) and a bias (out).
    pub fn from_tensors(weight: Tensor, bias: Tensor) -> Self {
        Linear { weight: Matrix::Dense(weight), bias: Some(bias) }
    }

    /// Format that this layer multiplies in, and attention beside it: bf16 on a GPU where the matrix is kept so, else f32.
    pub fn products(&self) -> DType {
        match &self.weight {
            Matrix::Dense(weight) if weight.device().is_cuda() && weight.dtype() == DType::BF16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// (n, in) -> (n, out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let (Matrix::Dense(weight), DType::BF16) = (&self.weight, self.products()) {
            return Ok(linear_bf16(x, weight, self.bias.as_ref())?);
        }
        let y = x.matmul(&self.weight.widened(x.dtype())?.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

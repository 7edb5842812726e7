//! Fully connected layer.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use navicache_kernels::{Activation, Level, Panels, Precision, dense, gelu_for_bf16, linear, linear_on_device};

use crate::{Matrix, Result, Weights};

/// `x W^T + b`.
///
/// The matrix may be kept in another format than the activations, or on disk. On the CPU its rows are converted as they
/// are packed for a product; one that is kept in what is multiplied stays packed.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight, // (out, in)
    bias: Option<Tensor>,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Weight {
    /// As products read it, in main memory.
    Panels(Arc<Panels>),
    Matrix(Matrix),
}

impl Weight {
    fn new(weight: Matrix, precision: Precision) -> Result<Self> {
        // What products read: the same numbers in the same memory.
        let read = match precision {
            Precision::F32 => Some(DType::F32),
            Precision::Bf16 => Level::current().multiplies_bf16().then_some(DType::BF16),
        };
        Ok(match weight {
            Matrix::Dense(weight) if weight.device().is_cpu() && Some(weight.dtype()) == read => {
                Weight::Panels(Arc::new(Panels::new(&dense(&weight.contiguous()?)?, precision)?))
            }
            weight => Weight::Matrix(weight),
        })
    }
}

impl Linear {
    /// A layer with a bias.
    pub fn new(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        let layer = Self::without_bias(inputs, outputs, w.clone())?;
        Ok(Linear { bias: Some(w.f32("bias", &[outputs])?), ..layer })
    }

    /// A layer without.
    pub fn without_bias(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        let (weight, precision) = (w.matrix("weight", &[outputs, inputs])?, w.precision());
        Ok(Linear { weight: Weight::new(weight, precision)?, bias: None, precision })
    }

    /// A layer that is f32 whatever the weights are kept in and multiplied as, as the reference does for a few small
    /// ones.
    pub fn in_f32(inputs: usize, outputs: usize, w: Weights) -> Result<Self> {
        Linear::from_tensors(w.f32("weight", &[outputs, inputs])?, w.f32("bias", &[outputs])?)
    }

    /// From a matrix (out, in) and a bias (out), multiplied in f32.
    pub fn from_tensors(weight: Tensor, bias: Tensor) -> Result<Self> {
        let precision = Precision::F32;
        Ok(Linear { weight: Weight::new(Matrix::Dense(weight), precision)?, bias: Some(bias), precision })
    }

    /// What it multiplies.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// (n, in) -> (n, out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Activation::None)
    }

    /// GELU of it, in the same pass. // (n, in) -> (n, out)
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Activation::Gelu)
    }

    /// `next` of GELU of it. // (n, in) -> (n, out of `next`)
    pub fn forward_gelu_into(&self, next: &Linear, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() || next.precision == Precision::F32 {
            return next.forward(&self.forward_gelu(x)?);
        }
        next.forward(&gelu_for_bf16(&self.forward(x)?)?)
    }

    /// `x` as products on its device read it, for several layers of this one's precision.
    pub fn operand(&self, x: &Tensor) -> Result<Tensor> {
        match self.precision {
            Precision::Bf16 if !x.device().is_cpu() => Ok(x.to_dtype(DType::BF16)?),
            _ => Ok(x.clone()),
        }
    }

    fn run(&self, x: &Tensor, then: Activation) -> Result<Tensor> {
        let (bias, precision) = (self.bias.as_ref(), self.precision);
        Ok(match &self.weight {
            Weight::Panels(panels) => linear(x, &**panels, bias, then, precision)?,
            Weight::Matrix(matrix) if !x.device().is_cpu() => {
                linear_on_device(x, &matrix.on_device(precision)?, bias, then, precision)?
            }
            Weight::Matrix(Matrix::Packed(packed)) => linear(x, &*packed.open()?, bias, then, precision)?,
            Weight::Matrix(Matrix::Dense(weight)) => linear(x, &dense(weight)?, bias, then, precision)?,
        })
    }
}

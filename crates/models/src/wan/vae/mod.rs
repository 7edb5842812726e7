//! The causal video autoencoder, of Wan2.1 and of Wan2.2 TI2V-5B.

mod blocks;
mod decoder;
mod encoder;
mod parts;

use candle_core::{DType, Device, Tensor};

pub use decoder::{Decoding, Vae};
pub use encoder::{Encoding, LowerEncoding, UpperEncoding, VaeEncoder};

use crate::Result;

/// A number for each channel of the latents. // (1, z, 1, 1, 1)
fn statistic(values: &[f64], device: &Device) -> Result<Tensor> {
    Ok(Tensor::new(values, device)?.to_dtype(DType::F32)?.reshape((1, values.len(), 1, 1, 1))?)
}

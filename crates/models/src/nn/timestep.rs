//! Sinusoidal embedding of the timestep.

use candle_core::{Device, Tensor};

use crate::Result;

/// `[cos(t f_0), ..., sin(t f_0), ...]` with frequencies falling from 1 to nearly 1 / 10000. // (1, dim)
///
/// Source: diffusers `get_timestep_embedding` with `flip_sin_to_cos` and no frequency shift; products are rounded to
/// f32 there, and so they are here: at timestep 999 that is what the model was trained with.
pub fn sinusoid(timestep: f64, dim: usize, device: &Device) -> Result<Tensor> {
    let half = dim / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f64.ln() as f32) * i as f32 / half as f32;
            timestep as f32 * exponent.exp()
        })
        .collect();
    let mut values: Vec<f32> = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
    values.resize(dim, 0.0);
    Ok(Tensor::from_vec(values, (1, dim), device)?)
}

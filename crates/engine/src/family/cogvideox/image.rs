//! A picture -> the latents that stand beside those of the video.

use candle_core::{Device, Tensor};
use navicache_media::{Filter, Picture};
use navicache_models::cogvideox::{VaeConfig, VaeEncoder};
use navicache_weights::Role;

use crate::Result;
use crate::family::seam::Shared;
use crate::noise::Generator;
use crate::request::Resolved;

/// A sample of the picture's latents, scaled as the model was trained, as the first latent frame, and zeros after it.
/// // (1, channels, latent frames, height, width)
///
/// The numbers of the sample are the first that the generation draws.
pub(super) fn latents(shared: &Shared, vae: &VaeConfig, picture: &Picture, request: &Resolved) -> Result<Tensor> {
    let Shared { host, sizes, .. } = shared;
    let picture = picture.resized(request.width, request.height, Filter::Lanczos);
    let weights = shared.weights(Role::Vae)?;
    let encoder = VaeEncoder::new(vae, host.weights_as_stored(weights))?;
    let (mean, deviation) = encoder.encode(&pixels(&picture, &host.device)?)?; // (1, z, 1, h, w) each
    let numbers = Generator::new(request.seed).randn(mean.elem_count());
    let noise = Tensor::from_vec(numbers, mean.shape(), &Device::Cpu)?.to_device(&host.device)?;
    let latents = (mean + (deviation * noise)?)?;
    // A slip in the training of version 1.5, kept.
    let factor = if vae.invert_scale_latents { 1.0 / vae.scaling_factor } else { vae.scaling_factor };
    let [_, _, frames, ..] = sizes.latents_shape(request.width, request.height, request.frames);
    Ok((latents * factor)?.pad_with_zeros(2, 0, frames - 1)?)
}

/// In [-1, 1]. // (1, 3, height, width)
fn pixels(picture: &Picture, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = picture.rgb.iter().map(|&value| (f32::from(value) / 255.0) * 2.0 - 1.0).collect();
    let pixels = Tensor::from_vec(values, (1, picture.height, picture.width, 3), device)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

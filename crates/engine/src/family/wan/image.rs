//! A picture -> what a video that starts from it is conditioned on.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use navicache_models::image::clip::{self, ClipVision};
use navicache_models::wan::tiling::{Window, largest_window, shares, windows};
use navicache_models::wan::{PictureCond, VaeConfig, VaeEncoder};

use super::published::Published;
use crate::Result;
use crate::family::seam::Pictured;
use crate::host::Host;
use crate::request::Resolved;
use crate::sizes::{Causal, Sizes};
use navicache_media::{Filter, Picture};
use navicache_weights::layout::Piece;

/// What the image encoder expects of pixels; `image_processor/preprocessor_config.json`.
#[derive(Debug, Clone, serde::Deserialize)]
pub(super) struct Preprocessor {
    pub image_mean: [f64; 3],
    pub image_std: [f64; 3],
}

impl Default for Preprocessor {
    /// CLIP's own (Radford et al. 2021).
    fn default() -> Self {
        Preprocessor {
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

/// What of a pipeline encodes pictures.
pub(super) struct Encoders<'a> {
    pub host: &'a Host,
    pub published: Published,
    pub sizes: &'a Causal,
    pub vae: &'a Piece<VaeConfig>,
    pub image_encoder: Option<&'a Piece<clip::Config>>,
    pub preprocessor: &'a Preprocessor,
}

/// Encodes the picture that a video starts from. Loads the encoders and frees them.
pub(super) fn condition_on(encoders: &Encoders, picture: &Picture, request: &Resolved) -> Result<Pictured> {
    let first = picture.resized(request.width, request.height, Filter::Lanczos);
    let first = tensor(&first, &[0.5; 3], &[0.5; 3], &encoders.host.device)?; // in [-1, 1]
    let [_, _, frames, ..] = encoders.sizes.latents_shape(request.width, request.height, request.frames);
    if encoders.published == Published::Wan22Ti2v {
        let still = encode_clip(encoders, &first, 1)?;
        let cond = PictureCond { still_frames: 1, ..PictureCond::default() };
        return Ok(Pictured { cond, still: Some(still) });
    }
    let latents = encode_clip(encoders, &first, frames)?; // (1, z, f, h, w)
    let (_, _, frames, height, width) = latents.dims5()?;
    // Which pixels are known: all of those that the first latent frame stands for, none of the others.
    let factor = encoders.vae.config.scale_factor_temporal();
    let known = Tensor::ones((1, factor, 1, height, width), DType::F32, &encoders.host.device)?;
    let mask = known.pad_with_zeros(2, 0, frames - 1)?;
    let channels = Some(Tensor::cat(&[&mask, &latents], 1)?);
    let embedding = encoders.image_encoder.as_ref().map(|encoder| look_at(encoders, picture, encoder)).transpose()?;
    Ok(Pictured { cond: PictureCond { embedding, channels, still_frames: 0 }, still: None })
}

/// A clip that begins with a frame and goes on grey, as latents of a length; in windows where memory is short.
/// // (1, 3, h, w) -> (1, z, f, h, w)
fn encode_clip(encoders: &Encoders, first: &Tensor, latent_frames: usize) -> Result<Tensor> {
    let config = &encoders.vae.config;
    let encoder = VaeEncoder::new(config, encoders.host.weights_as_stored(&encoders.vae.tensors))?;
    let (_, _, height, width) = first.dims4()?;
    let factor = encoders.sizes.spatial;
    let (rows, columns) = (height / factor, width / factor);
    let room = encoders.host.room();
    let window =
        largest_window(rows, columns, |window| config.encode_bytes(window.rows.len(), window.columns.len()) <= room);
    let features = encode_features(encoders, &encoder, first, latent_frames, &windows(rows, columns, window))?;
    let mut encoding = encoder.upper_encoder();
    let latents = features.iter().map(|features| encoding.next_latent(features)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&latents, 2)?)
}

/// The features of whole frames, from those of windows. // (1, channels, h, w) for each latent frame
fn encode_features(
    encoders: &Encoders,
    encoder: &VaeEncoder,
    first: &Tensor,
    latent_frames: usize,
    windows: &[Window],
) -> Result<Vec<Tensor>> {
    let (_, colors, height, width) = first.dims4()?;
    let factor = encoders.sizes.spatial;
    let ranges = |axis: fn(&Window) -> Range<usize>| windows.iter().map(axis).collect::<Vec<_>>();
    let (rows, columns) = (ranges(|window| window.rows.clone()), ranges(|window| window.columns.clone()));
    let mut whole: Vec<Tensor> = Vec::new();
    for window in windows {
        let (top, left) = (window.rows.start, window.columns.start);
        let (h, w) = (window.rows.len(), window.columns.len());
        let part = first.narrow(2, top * factor, h * factor)?.narrow(3, left * factor, w * factor)?.contiguous()?;
        let grey = Tensor::zeros(
            (encoder.temporal_factor(), colors, h * factor, w * factor),
            DType::F32,
            &encoders.host.device,
        )?;
        let down = Tensor::new(shares(&rows, &window.rows, 1), &encoders.host.device)?.reshape((1, 1, h, 1))?;
        let across = Tensor::new(shares(&columns, &window.columns, 1), &encoders.host.device)?.reshape((1, 1, 1, w))?;
        let mut encoding = encoder.lower_encoder();
        for frame in 0..latent_frames {
            let features = encoding.next_features(if frame == 0 { &part } else { &grey })?;
            if windows.len() == 1 {
                whole.push(features);
                continue;
            }
            let share = features.broadcast_mul(&down)?.broadcast_mul(&across)?;
            let share = share.pad_with_zeros(2, top, height / factor - top - h)?.pad_with_zeros(
                3,
                left,
                width / factor - left - w,
            )?;
            match whole.get_mut(frame) {
                Some(sum) => *sum = (&*sum + share)?,
                None => whole.push(share),
            }
        }
    }
    Ok(whole)
}

/// The features of a picture. // (1, tokens, dim)
fn look_at(encoders: &Encoders, picture: &Picture, encoder: &Piece<clip::Config>) -> Result<Tensor> {
    let Preprocessor { image_mean, image_std } = &encoders.preprocessor;
    let square = picture.middle_square(encoder.config.image_size, Filter::Bicubic);
    let model = ClipVision::new(&encoder.config, encoders.host.weights(&encoder.tensors))?;
    Ok(model.forward(&tensor(&square, image_mean, image_std, &encoders.host.device)?)?)
}

/// Values from 0 to 1, less a mean and over a deviation, color by color. // (1, 3, height, width)
fn tensor(picture: &Picture, mean: &[f64; 3], std: &[f64; 3], device: &Device) -> Result<Tensor> {
    let value = |(i, &v): (usize, &u8)| ((f64::from(v) / 255.0 - mean[i % 3]) / std[i % 3]) as f32;
    let values: Vec<f32> = picture.rgb.iter().enumerate().map(value).collect();
    let pixels = Tensor::from_vec(values, (1, picture.height, picture.width, 3), device)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

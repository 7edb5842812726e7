//! A picture -> what a video that starts from it is conditioned on.

use candle_core::{DType, Device, Tensor};
use navicache_models::image::clip::{self, ClipVision};
use navicache_models::wan::{VaeConfig, VaeEncoder};
use navicache_weights::{Folder, Role};
use serde_json::Value;

use super::published::Published;
use crate::family::seam::{ImageConditioning, Shared};
use crate::request::Resolved;
use crate::{Error, Result};
use navicache_media::{Filter, Picture};

/// What the image encoder makes of the picture. // (1, tokens, dim)
pub(super) const EMBEDDING: &str = "embedding";
/// Channels beside those of the latents: which are known, and what they are. // (1, channels, latent frames, h, w)
pub(super) const CHANNELS: &str = "channels";

/// What the image encoder expects of pixels.
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

/// Where a Diffusers folder says it.
const FILE: &str = "image_processor/preprocessor_config.json";

impl Preprocessor {
    /// Reads the file; what would prepare a picture in another way than here is refused. `side`: of the square that the
    /// encoder takes.
    pub fn read(folder: &Folder, side: usize) -> Result<Self> {
        const BICUBIC: u64 = 3;
        let json: Value = folder.json(FILE)?;
        let wrong = |key: &str, expected: String| {
            Error::file(folder.path(FILE), format!("{key}: expected {expected}, found {}", json[key]))
        };
        for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            if json[key] == Value::Bool(false) {
                return Err(wrong(key, "true".to_string()));
            }
        }
        if json["resample"].as_u64().unwrap_or(BICUBIC) != BICUBIC {
            return Err(wrong("resample", format!("{BICUBIC} (bicubic)")));
        }
        if json["rescale_factor"].as_f64().is_some_and(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
            return Err(wrong("rescale_factor", "1/255".to_string()));
        }
        for key in ["size", "crop_size"] {
            let sides = match &json[key] {
                Value::Object(sides) => sides.values().filter_map(Value::as_u64).collect(),
                alone => alone.as_u64().into_iter().collect::<Vec<_>>(),
            };
            if sides.iter().any(|&found| found != side as u64) {
                return Err(wrong(key, format!("{side}, the image encoder's")));
            }
        }
        serde_json::from_value(json).map_err(|e| Error::file(folder.path(FILE), e.to_string()))
    }
}

/// What of a pipeline encodes pictures.
pub(super) struct Encoders<'a> {
    pub shared: &'a Shared,
    pub published: Published,
    pub vae: &'a VaeConfig,
    pub image_encoder: Option<&'a clip::Config>,
    pub preprocessor: &'a Preprocessor,
}

/// Encodes the picture that a video starts from. Loads the encoders and frees them.
pub(super) fn condition_on(encoders: &Encoders, picture: &Picture, request: &Resolved) -> Result<ImageConditioning> {
    let Shared { host, sizes, .. } = encoders.shared;
    let first = picture.resized(request.width, request.height, Filter::Lanczos);
    let first = tensor(&first, &[0.5; 3], &[0.5; 3], &host.device)?; // in [-1, 1]
    let [_, _, frames, ..] = sizes.latents_shape(request.width, request.height, request.frames);
    let weights = encoders.shared.weights(Role::Vae)?;
    let encoder = VaeEncoder::new(encoders.vae, host.weights_as_stored(weights))?;
    if encoders.published == Published::Wan22Ti2v {
        let known_latents = Some(encoder.encode_first(&first, 1, host.budget())?);
        return Ok(ImageConditioning { known_latents, ..ImageConditioning::default() });
    }
    let latents = encoder.encode_first(&first, frames, host.budget())?; // (1, z, f, h, w)
    let (_, _, frames, height, width) = latents.dims5()?;
    // Which pixels are known: all of those that the first latent frame stands for, none of the others.
    let factor = encoders.vae.scale_factor_temporal();
    let known = Tensor::ones((1, factor, 1, height, width), DType::F32, &host.device)?;
    let mask = known.pad_with_zeros(2, 0, frames - 1)?;
    let mut image = ImageConditioning::default();
    image.inputs.extend([(CHANNELS, Tensor::cat(&[&mask, &latents], 1)?)]);
    if let Some(config) = encoders.image_encoder {
        image.inputs.extend([(EMBEDDING, embedding(encoders, picture, config)?)]);
    }
    Ok(image)
}

/// The features of a picture. // (1, tokens, dim)
fn embedding(encoders: &Encoders, picture: &Picture, config: &clip::Config) -> Result<Tensor> {
    let Preprocessor { image_mean, image_std } = encoders.preprocessor;
    let Shared { host, .. } = encoders.shared;
    let square = picture.middle_square(config.image_size, Filter::Bicubic);
    let model = ClipVision::new(config, host.weights(encoders.shared.weights(Role::ImageEncoder)?))?;
    Ok(model.forward(&tensor(&square, image_mean, image_std, &host.device)?)?)
}

/// Values from 0 to 1, less a mean and over a deviation, color by color. // (1, 3, height, width)
fn tensor(picture: &Picture, mean: &[f64; 3], std: &[f64; 3], device: &Device) -> Result<Tensor> {
    let value = |(i, &v): (usize, &u8)| ((f64::from(v) / 255.0 - mean[i % 3]) / std[i % 3]) as f32;
    let values: Vec<f32> = picture.rgb.iter().enumerate().map(value).collect();
    let pixels = Tensor::from_vec(values, (1, picture.height, picture.width, 3), device)?;
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

//! Latents -> frames, whole or in tiles.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;

use crate::event::{Event, Reporter, Stage};
use crate::latents::Saved;
use crate::request::Tiling;
use crate::{Bundle, Clip, Error, Result, latents};

/// Makes a video of latents that an earlier generation saved, with the model's VAE alone. `frames`: how many of those that the latents
/// stand for, where the file does not say; `None` is all.
pub fn decode_latents(
    bundle: &Bundle,
    path: &Path,
    tiling: Tiling,
    frames: Option<usize>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Clip> {
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    let family = bundle.family();
    let Saved { shape: [one, channels, rest @ ..], frames: said } = latents::saved(path)?;
    let [_, expected, ..] = family.sizes().latents_shape(16, 16, 1);
    let latents = latents::from_file(path, &[one, expected, rest[0], rest[1], rest[2]], &family.host().device)?;
    let (width, height, most) = family.sizes().video_shape(&[one, channels, rest[0], rest[1], rest[2]]);
    let frames = frames.or(said).unwrap_or(most);
    if frames == 0 || frames > most {
        return Err(Error::Request {
            what: "--frames",
            found: frames.to_string(),
            expected: format!("these latents stand for 1 to {most} frames"),
        });
    }
    Ok(Clip { width, height, fps: None, frames: decode_frames(bundle, &latents, frames, tiling, &mut reporter)? })
}

/// Makes frames of latents, with the model's VAE alone. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub fn decode(
    bundle: &Bundle,
    latents: &Tensor,
    frames: usize,
    tiling: Tiling,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<u8>> {
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    decode_frames(bundle, latents, frames, tiling, &mut reporter)
}

/// So many frames of latents. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub(crate) fn decode_frames(
    bundle: &Bundle,
    latents: &Tensor,
    frames: usize,
    tiling: Tiling,
    reporter: &mut Reporter,
) -> Result<Vec<u8>> {
    let family = bundle.family();
    let shape = latents::shape_of(latents)?;
    let whole = family.decode_plan(&shape, Tiling::Off).bytes;
    if family.host().memory().is_some_and(|memory| whole > memory / 2) {
        family.free_transformer();
    }
    let plan = family.decode_plan(&shape, tiling);
    family.load_vae()?;
    reporter.emit(Event::Stage(Stage::Decode));
    family.decode(latents, frames, &plan, reporter)
}

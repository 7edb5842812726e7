//! Latents -> frames, whole or in tiles.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;

use navicache_models::Room;

use crate::event::{Event, Reporter, Stage};
use crate::family::Shared;
use crate::field::Field;
use crate::film::FrameSink;
use crate::host::Host;
use crate::latents::Saved;
use crate::machine::computing;
use crate::request::Tiling;
use crate::{Clip, Error, Pipeline, Result, latents};

/// Makes a video of latents that an earlier generation saved, with the model's VAE alone. `frames`: how many of those
/// that the latents stand for, where the file does not say; `None` is all.
pub fn decode_latents(
    pipeline: &Pipeline,
    path: &Path,
    tiling: Tiling,
    frames: Option<usize>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Clip> {
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    let family = pipeline.family();
    let Saved { shape: [one, channels, rest @ ..], frames: said } = latents::saved(path)?;
    let [_, expected, ..] = family.shared().sizes.latents_shape(16, 16, 1);
    let latents = latents::from_file(path, &[one, expected, rest[0], rest[1], rest[2]], &family.shared().host.device)?;
    let (width, height, most) = family.shared().sizes.video_shape(&[one, channels, rest[0], rest[1], rest[2]]);
    let frames = frames.or(said).unwrap_or(most);
    if frames == 0 || frames > most {
        return Err(Error::Invalid {
            field: Field::Frames,
            found: frames.to_string(),
            expected: format!("these latents stand for 1 to {most} frames"),
        });
    }
    Ok(Clip { width, height, fps: None, frames: decode_frames(pipeline, &latents, frames, tiling, &mut reporter)? })
}

/// Makes frames of latents, with the model's VAE alone. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub fn decode(
    pipeline: &Pipeline,
    latents: &Tensor,
    frames: usize,
    tiling: Tiling,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<u8>> {
    let mut reporter = Reporter { on_event, warnings: Vec::new(), cancelled: false };
    decode_frames(pipeline, latents, frames, tiling, &mut reporter)
}

/// So many frames of latents. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub(crate) fn decode_frames(
    pipeline: &Pipeline,
    latents: &Tensor,
    frames: usize,
    tiling: Tiling,
    reporter: &mut Reporter,
) -> Result<Vec<u8>> {
    let family = pipeline.family();
    let Shared { host, sizes, .. } = family.shared();
    let shape = latents::shape_of(latents)?;
    let autoencoder = family.autoencoder()?;
    let whole = autoencoder.plan(&shape, Room::Bytes(u64::MAX)).bytes;
    if host.memory().is_some_and(|memory| whole > memory / 2) {
        family.free_transformer();
    }
    let plan = autoencoder.plan(&shape, room(tiling, host));
    reporter.emit(Event::Stage(Stage::Decode));
    let (width, height, _) = sizes.video_shape(&shape);
    let mut sink = FrameSink::new(width, height, frames, reporter);
    let mut decoding = autoencoder.decoder(latents, frames, &plan)?;
    while let Some(chunk) = computing(|| decoding.next_chunk())? {
        sink.push(&chunk)?;
    }
    Ok(sink.finish())
}

/// How large the parts may be that are decoded at once.
pub(crate) fn room(tiling: Tiling, host: &Host) -> Room {
    match tiling {
        Tiling::Auto => Room::Bytes(host.budget()),
        Tiling::Off => Room::Bytes(u64::MAX),
        Tiling::Pixels(pixels) => Room::Pixels(pixels),
    }
}

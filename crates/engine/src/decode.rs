//! Latents -> frames, whole or in tiles.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use candle_core::{DType, Tensor};
use navicache_models::wan::tiling::{SMALLEST, Window, largest_window, shares, windows};

use crate::generate::{Event, Stage, Teller};
use crate::video::Clip;
use crate::{Bundle, Error, Result, latents};

/// In which parts frames are decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tiling {
    /// As large as memory allows.
    #[default]
    Auto,
    /// Whole frames.
    Off,
    /// Tiles of at most so many pixels each way.
    #[serde(untagged)]
    Pixels(usize),
}

impl std::str::FromStr for Tiling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Tiling::Auto),
            ("off", _) => Ok(Tiling::Off),
            (_, Ok(pixels @ 1..)) => Ok(Tiling::Pixels(pixels)),
            _ => Err(Error::Request {
                what: "--tile",
                found: text.to_string(),
                expected: "expected auto, off or a number of pixels".to_string(),
            }),
        }
    }
}

/// Makes a video of latents that an earlier generation saved, with the model's VAE alone.
pub fn decode_latents(
    bundle: &Bundle,
    path: &Path,
    tiling: Tiling,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Clip> {
    let mut teller = Teller { on_event, warnings: Vec::new(), cancelled: false };
    let shape = latents::shape_of(path)?;
    let expected = bundle.latents_shape_like(&shape);
    let latents = latents::from_file(path, &expected, bundle.device())?;
    let (width, height, _) = bundle.video_shape(&shape);
    Ok(Clip { width, height, fps: None, frames: decode(bundle, &latents, tiling, &mut teller)? })
}

/// All frames of latents. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub(crate) fn decode(bundle: &Bundle, latents: &Tensor, tiling: Tiling, teller: &mut Teller) -> Result<Vec<u8>> {
    let (_, _, latent_frames, rows, columns) = latents.dims5()?;
    let whole = Window { rows: 0..rows, columns: 0..columns };
    bundle.make_room_for_decoding(bundle.decode_bytes(&whole, latent_frames, rows, columns));
    let window = match tiling {
        Tiling::Off => rows.max(columns),
        Tiling::Pixels(pixels) => (pixels / bundle.spatial_factor()).max(SMALLEST),
        Tiling::Auto => window_for(bundle, latent_frames, rows, columns),
    };
    let windows = windows(rows, columns, window);
    let vae = bundle.vae()?;
    teller.tell(Event::Stage(Stage::Decode));
    let denormalized = vae.denormalize(latents)?;
    let (width, height, frames) = bundle.video_shape(&shape_of(latents)?);
    let mut pixels = Vec::with_capacity(frames * height * width * 3);
    if windows.len() == 1 {
        let mut decoding = vae.decoder(&denormalized)?;
        while let Some(chunk) = decoding.next_chunk()? {
            let first = pixels.len() / (height * width * 3);
            let (count, rgb) = (chunk.dim(0)?, to_rgb(&chunk)?);
            pixels.extend_from_slice(&rgb);
            teller.tell(Event::Frames { first, count, frames, rgb: &rgb });
            teller.stop_if_decoding_cancelled()?;
        }
        return Ok(pixels);
    }

    pixels.resize(frames * height * width * 3, 0);
    let features = vae.features(&denormalized)?;
    let factor = bundle.spatial_factor();
    for (index, window) in windows.iter().enumerate() {
        let blend = Blend::new(&windows, window, factor);
        let mut decoding = vae.window_decoder(&features, window.clone());
        let mut frame = 0;
        while let Some(chunk) = decoding.next_chunk()? {
            let rgb = to_rgb(&chunk)?;
            let size = blend.rows.len() * blend.columns.len() * 3;
            for tile in rgb.chunks_exact(size) {
                blend.paste(tile, &mut pixels[frame * height * width * 3..][..height * width * 3], width);
                frame += 1;
            }
            teller.stop_if_decoding_cancelled()?;
        }
        teller.tell(Event::Tile { index, tiles: windows.len() });
    }
    for (first, rgb) in pixels.chunks_exact(height * width * 3).enumerate() {
        teller.tell(Event::Frames { first, count: 1, frames, rgb });
    }
    Ok(pixels)
}

/// The largest window whose decoding fits into the memory there is.
pub(crate) fn window_for(bundle: &Bundle, latent_frames: usize, rows: usize, columns: usize) -> usize {
    let room = bundle.room();
    largest_window(rows, columns, |window| bundle.decode_bytes(window, latent_frames, rows, columns) <= room)
}

fn shape_of(latents: &Tensor) -> Result<[usize; 5]> {
    let (one, channels, frames, height, width) = latents.dims5()?;
    Ok([one, channels, frames, height, width])
}

/// How a window's pixels go into the frame.
struct Blend {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Share of the window in each of its rows.
    down: Vec<f32>,
    /// Share of the window in each of its columns.
    across: Vec<f32>,
}

impl Blend {
    fn new(windows: &[Window], window: &Window, factor: usize) -> Self {
        // Windows come row by row: what comes after is mixed into what is there, so that only those before count.
        let before = |axis: fn(&Window) -> &Range<usize>| {
            let upto = axis(window).start;
            let ranges = windows.iter().map(axis).filter(|range| range.start <= upto).cloned().collect::<Vec<_>>();
            shares(&ranges, axis(window), factor)
        };
        let scaled = |range: &Range<usize>| range.start * factor..range.end * factor;
        Blend {
            rows: scaled(&window.rows),
            columns: scaled(&window.columns),
            down: before(|window| &window.rows),
            across: before(|window| &window.columns),
        }
    }

    /// (rows, columns, 3) into (height, width, 3).
    fn paste(&self, tile: &[u8], frame: &mut [u8], width: usize) {
        let row_bytes = self.columns.len() * 3;
        for ((y, down), tile) in self.rows.clone().zip(&self.down).zip(tile.chunks_exact(row_bytes)) {
            let row = &mut frame[(y * width + self.columns.start) * 3..][..row_bytes];
            let across = self.across.iter().flat_map(|share| [share; 3]);
            for ((there, &new), across) in row.iter_mut().zip(tile).zip(across) {
                let share = across * down;
                *there = (*there as f32 * (1.0 - share) + new as f32 * share).round() as u8;
            }
        }
    }
}

/// Frames in [-1, 1] to 8 bits, rounded to the nearest. // (f, 3, h, w) -> (f, h, w, 3)
fn to_rgb(chunk: &Tensor) -> Result<Vec<u8>> {
    let scaled = chunk.permute((0, 2, 3, 1))?.affine(127.5, 127.5)?.clamp(0.0, 255.0)?.round()?;
    Ok(scaled.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?)
}

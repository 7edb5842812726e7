//! Latents -> frames, whole or in tiles.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use candle_core::{DType, Tensor};
use navicache_models::wan::tiling::{Window, shares};

use crate::generate::{Event, Stage, Teller};
use crate::latents::Saved;
use crate::Clip;
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

/// In which parts latents are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecodePlan {
    /// Latents each way of a part.
    pub window: usize,
    /// Its pixels, width and height.
    pub tile: [usize; 2],
    /// About the most bytes that decoding takes beside the weights.
    pub bytes: u64,
}

impl DecodePlan {
    /// Parts of at most `window` latents each way, each of `factor` pixels.
    pub fn new(window: usize, [_, _, _, rows, columns]: &[usize; 5], factor: usize, bytes: u64) -> Self {
        DecodePlan { window, tile: [(*columns).min(window) * factor, (*rows).min(window) * factor], bytes }
    }
}

/// Makes a video of latents that an earlier generation saved, with the model's VAE alone. `frames`: how many of those that the latents
/// stand for, where the file does not say; `None` is all.
pub fn decode_latents(
    bundle: &Bundle,
    path: &Path,
    tiling: Tiling,
    frames: Option<usize>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Clip> {
    let mut teller = Teller { on_event, warnings: Vec::new(), cancelled: false };
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
    Ok(Clip { width, height, fps: None, frames: decode(bundle, &latents, frames, tiling, &mut teller)? })
}

/// So many frames of latents. // (1, z, latent frames, h, w) -> (frames, height, width, 3)
pub(crate) fn decode(
    bundle: &Bundle,
    latents: &Tensor,
    frames: usize,
    tiling: Tiling,
    teller: &mut Teller,
) -> Result<Vec<u8>> {
    let family = bundle.family();
    let shape = latents::shape_of(latents)?;
    let whole = family.decode_plan(&shape, Tiling::Off).bytes;
    if family.host().memory().is_some_and(|memory| whole > memory / 2) {
        family.free_transformer();
    }
    let plan = family.decode_plan(&shape, tiling);
    family.load_vae()?;
    teller.tell(Event::Stage(Stage::Decode));
    family.decode(latents, frames, &plan, teller)
}

/// Frames as they are decoded.
pub(crate) struct Film<'a, 'b> {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    frames: usize,
    /// Whether frames are put together of tiles: they are told of when all are done.
    is_tiled: bool,
    teller: &'a mut Teller<'b>,
}

impl<'a, 'b> Film<'a, 'b> {
    pub fn new(width: usize, height: usize, frames: usize, teller: &'a mut Teller<'b>) -> Self {
        let pixels = Vec::with_capacity(frames * height * width * 3);
        Film { pixels, width, height, frames, is_tiled: false, teller }
    }

    fn frame_bytes(&self) -> usize {
        self.height * self.width * 3
    }

    /// Whole frames, the next ones. // (n, 3, height, width), in [-1, 1]
    pub fn push(&mut self, chunk: &Tensor) -> Result<()> {
        let first = self.pixels.len() / self.frame_bytes();
        let (count, rgb) = (chunk.dim(0)?.min(self.frames - first), to_rgb(chunk)?);
        let rgb = &rgb[..count * self.frame_bytes()];
        self.pixels.extend_from_slice(rgb);
        self.teller.tell(Event::Frames { first, count, frames: self.frames, rgb });
        self.teller.stop_if_decoding_cancelled()
    }

    /// Tiles of some frames from the `first` on; gives the one after them. // (n, 3, rows, columns), in [-1, 1]
    pub fn paste(&mut self, chunk: &Tensor, first: usize, blend: &Blend) -> Result<usize> {
        self.is_tiled = true;
        self.pixels.resize(self.frames * self.frame_bytes(), 0);
        let (rgb, bytes) = (to_rgb(chunk)?, self.frame_bytes());
        let tile_bytes = blend.rows.len() * blend.columns.len() * 3;
        let frames = self.pixels.chunks_exact_mut(bytes).skip(first);
        rgb.chunks_exact(tile_bytes).zip(frames).for_each(|(tile, frame)| blend.paste(tile, frame, self.width));
        self.teller.stop_if_decoding_cancelled()?;
        Ok(first + chunk.dim(0)?)
    }

    /// One tile of all frames is there.
    pub fn tile_done(&mut self, index: usize, tiles: usize) {
        self.teller.tell(Event::Tile { index, tiles });
    }

    pub fn finish(self) -> Vec<u8> {
        if self.is_tiled {
            for (first, rgb) in self.pixels.chunks_exact(self.height * self.width * 3).enumerate() {
                self.teller.tell(Event::Frames { first, count: 1, frames: self.frames, rgb });
            }
        }
        self.pixels
    }
}

/// How a window's pixels go into the frame.
pub(crate) struct Blend {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Share of the window in each of its rows.
    down: Vec<f32>,
    /// Share of the window in each of its columns.
    across: Vec<f32>,
}

impl Blend {
    pub fn new(windows: &[Window], window: &Window, factor: usize) -> Self {
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

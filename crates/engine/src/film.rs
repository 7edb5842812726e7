//! Frames as they are decoded, whole or in tiles, become pixels.

use candle_core::{DType, Tensor};
use navicache_models::Chunk;
use navicache_models::tiling::Blend;

use crate::event::{Event, Reporter};
use crate::{Error, Result};

/// Frames as they are decoded.
pub(crate) struct FrameSink<'a, 'b> {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    frames: usize,
    /// Whether frames are put together from tiles: then they are reported when all are done.
    is_tiled: bool,
    reporter: &'a mut Reporter<'b>,
}

impl<'a, 'b> FrameSink<'a, 'b> {
    pub fn new(width: usize, height: usize, frames: usize, reporter: &'a mut Reporter<'b>) -> Self {
        let pixels = Vec::with_capacity(frames * height * width * 3);
        FrameSink { pixels, width, height, frames, is_tiled: false, reporter }
    }

    fn frame_bytes(&self) -> usize {
        self.height * self.width * 3
    }

    /// What comes next of the decoder.
    pub fn push(&mut self, chunk: &Chunk) -> Result<()> {
        match chunk {
            Chunk::Frames(frames) => self.append(frames),
            Chunk::Tile { pixels, first, blend } => self.paste(pixels, *first, blend),
            Chunk::TileDone { index, tiles } => {
                self.reporter.emit(Event::Tile { index: *index, tiles: *tiles });
                Ok(())
            }
        }
    }

    /// Whole frames, the next ones. // (n, 3, height, width), in [-1, 1]
    fn append(&mut self, chunk: &Tensor) -> Result<()> {
        let first = self.pixels.len() / self.frame_bytes();
        let (count, rgb) = (chunk.dim(0)?.min(self.frames - first), to_rgb(chunk)?);
        let rgb = &rgb[..count * self.frame_bytes()];
        self.pixels.extend_from_slice(rgb);
        self.reporter.emit(Event::Frames { first, count, frames: self.frames, rgb });
        self.reporter.stop_if_decoding_cancelled()
    }

    /// Tiles of some frames from the `first` on. // (n, 3, rows, columns), in [-1, 1]
    fn paste(&mut self, chunk: &Tensor, first: usize, blend: &Blend) -> Result<()> {
        self.is_tiled = true;
        self.pixels.resize(self.frames * self.frame_bytes(), 0);
        let (rgb, bytes) = (to_rgb(chunk)?, self.frame_bytes());
        let tile_bytes = blend.rows.len() * blend.columns.len() * 3;
        let frames = self.pixels.chunks_exact_mut(bytes).skip(first);
        rgb.chunks_exact(tile_bytes).zip(frames).for_each(|(tile, frame)| paste(blend, tile, frame, self.width));
        self.reporter.stop_if_decoding_cancelled()
    }

    pub fn finish(self) -> Vec<u8> {
        if self.is_tiled {
            for (first, rgb) in self.pixels.chunks_exact(self.height * self.width * 3).enumerate() {
                self.reporter.emit(Event::Frames { first, count: 1, frames: self.frames, rgb });
            }
        }
        self.pixels
    }
}

/// Mixes a tile into a frame. // (rows, columns, 3) into (height, width, 3)
fn paste(blend: &Blend, tile: &[u8], frame: &mut [u8], width: usize) {
    let row_bytes = blend.columns.len() * 3;
    for ((y, down), tile) in blend.rows.clone().zip(&blend.down).zip(tile.chunks_exact(row_bytes)) {
        let row = &mut frame[(y * width + blend.columns.start) * 3..][..row_bytes];
        let across = blend.across.iter().flat_map(|share| [share; 3]);
        for ((there, &new), across) in row.iter_mut().zip(tile).zip(across) {
            let share = across * down;
            *there = (*there as f32 * (1.0 - share) + new as f32 * share).round() as u8;
        }
    }
}

/// Frames in [-1, 1] to 8 bits, rounded to the nearest. // (f, 3, h, w) -> (f, h, w, 3)
///
/// # Errors
///
/// NaN or infinity, which would be black.
pub(crate) fn to_rgb(chunk: &Tensor) -> Result<Vec<u8>> {
    let scaled = chunk.permute((0, 2, 3, 1))?.affine(127.5, 127.5)?;
    if !scaled.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Err(Error::FramesNotFinite);
    }
    let scaled = scaled.clamp(0.0, 255.0)?.round()?;
    Ok(scaled.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_is_no_number_is_no_frame() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let mut values = vec![0.5; 3 * 4 * 4];
            values[7] = wrong;
            let chunk = Tensor::from_vec(values, (1, 3, 4, 4), &Device::Cpu).unwrap();
            assert!(matches!(to_rgb(&chunk), Err(Error::FramesNotFinite)), "{wrong}");
        }
        let chunk = Tensor::from_vec(vec![-2f32, 0.0, 3.0], (1, 3, 1, 1), &Device::Cpu).unwrap();
        assert_eq!(to_rgb(&chunk).unwrap(), [0, 128, 255]);
    }
}

//! Decoder and encoder frame by frame, or window by window where memory is short.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::decoder::{Decoding, Vae};
use super::encoder::VaeEncoder;
use crate::autoencoder::{Autoencoder, Chunk, Chunks, DecodePlan, Room};
use crate::tiling::{Blend, SMALLEST, Window, largest_window, shares, windows};
use crate::{Result, wan::VaeConfig};

impl VaeConfig {
    /// About the most bytes that decoding takes beside the weights, window by window of latents of a shape.
    fn window_bytes(&self, window: &Window, [_, _, frames, rows, columns]: &[usize; 5]) -> u64 {
        let widest = self.decoder_base_dim.unwrap_or(self.base_dim) * self.dim_mult.last().copied().unwrap_or(1);
        let is_whole = window.rows.len() == *rows && window.columns.len() == *columns;
        let features = if is_whole { 0 } else { 4 * frames * widest * rows * columns };
        let (space, time) = (self.scale_factor_spatial(), self.scale_factor_temporal());
        let pixels = 3 * (columns * space) * (rows * space) * (frames.saturating_sub(1) * time + 1);
        self.decode_bytes(window.rows.len(), window.columns.len()) + (features + pixels) as u64
    }
}

impl Autoencoder for Vae {
    fn plan(&self, latents: &[usize; 5], room: Room) -> DecodePlan {
        let [_, _, _, rows, columns] = *latents;
        let (config, factor) = (&self.config, self.config.scale_factor_spatial());
        let window = match room {
            Room::Pixels(pixels) => (pixels / factor).max(SMALLEST),
            Room::Bytes(room) => largest_window(rows, columns, |window| config.window_bytes(window, latents) <= room),
        };
        let largest = windows(rows, columns, window).swap_remove(0);
        DecodePlan::new(window, latents, factor, config.window_bytes(&largest, latents))
    }

    fn decoder<'a>(&'a self, latents: &Tensor, _: usize, plan: &DecodePlan) -> Result<Box<dyn Chunks + 'a>> {
        let (_, _, _, rows, columns) = latents.dims5()?;
        let windows = windows(rows, columns, plan.window);
        let latents = self.denormalize(latents)?;
        if windows.len() == 1 {
            return Ok(Box::new(Vae::decoder(self, &latents)?));
        }
        let features = Arc::new(self.features(&latents)?);
        Ok(Box::new(Windows { vae: self, features, windows, index: 0, first: 0, decoding: None }))
    }

    fn typical_frames(&self) -> usize {
        3
    }
}

impl Chunks for Decoding<'_> {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        Ok(Decoding::next_chunk(self)?.map(Chunk::Frames))
    }
}

/// A clip that is decoded window by window.
struct Windows<'a> {
    vae: &'a Vae,
    features: Arc<Vec<Tensor>>,
    windows: Vec<Window>,
    /// The window under way, and the frame that comes next of it.
    index: usize,
    first: usize,
    decoding: Option<Decoding<'a>>,
}

impl Chunks for Windows<'_> {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let Some(window) = self.windows.get(self.index) else { return Ok(None) };
        let begin = || self.vae.window_decoder(self.features.clone(), window.clone());
        let decoding = self.decoding.get_or_insert_with(begin);
        if let Some(pixels) = decoding.next_chunk()? {
            let blend = Blend::new(&self.windows, window, self.vae.config.scale_factor_spatial());
            let first = self.first;
            self.first += pixels.dim(0)?;
            return Ok(Some(Chunk::Tile { pixels, first, blend }));
        }
        (self.decoding, self.first) = (None, 0);
        self.index += 1;
        Ok(Some(Chunk::TileDone { index: self.index - 1, tiles: self.windows.len() }))
    }
}

impl VaeEncoder {
    /// A clip that begins with a frame and goes on grey, as latents of a length; in windows where the whole would take
    /// more than `room` bytes. // (1, 3, height, width) -> (1, z, latent frames, h, w)
    pub fn encode_first(&self, first: &Tensor, latent_frames: usize, room: u64) -> Result<Tensor> {
        let (_, _, height, width) = first.dims4()?;
        let factor = self.config.scale_factor_spatial();
        let (rows, columns) = (height / factor, width / factor);
        let fits = |window: &Window| self.config.encode_bytes(window.rows.len(), window.columns.len()) <= room;
        let windows = windows(rows, columns, largest_window(rows, columns, fits));
        let mut encoding = self.upper_encoder();
        let features = self.features_of(first, latent_frames, &windows)?;
        let latents = features.iter().map(|features| encoding.next_latent(features)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&latents, 2)?)
    }

    /// The features of whole frames, from those of windows. // (1, channels, h, w) for each latent frame
    fn features_of(&self, first: &Tensor, latent_frames: usize, windows: &[Window]) -> Result<Vec<Tensor>> {
        let (_, colors, height, width) = first.dims4()?;
        let (factor, device) = (self.config.scale_factor_spatial(), first.device());
        let ranges = |axis: fn(&Window) -> Range<usize>| windows.iter().map(axis).collect::<Vec<_>>();
        let (rows, columns) = (ranges(|window| window.rows.clone()), ranges(|window| window.columns.clone()));
        let mut whole: Vec<Tensor> = Vec::new();
        for window in windows {
            let (top, left) = (window.rows.start, window.columns.start);
            let (h, w) = (window.rows.len(), window.columns.len());
            let part = first.narrow(2, top * factor, h * factor)?.narrow(3, left * factor, w * factor)?.contiguous()?;
            let grey = Tensor::zeros((self.temporal_factor(), colors, h * factor, w * factor), DType::F32, device)?;
            let down = Tensor::new(shares(&rows, &window.rows, 1), device)?.reshape((1, 1, h, 1))?;
            let across = Tensor::new(shares(&columns, &window.columns, 1), device)?.reshape((1, 1, 1, w))?;
            let mut encoding = self.lower_encoder();
            for frame in 0..latent_frames {
                let features = encoding.next_features(if frame == 0 { &part } else { &grey })?;
                if windows.len() == 1 {
                    whole.push(features);
                    continue;
                }
                let share = features.broadcast_mul(&down)?.broadcast_mul(&across)?;
                let share = share.pad_with_zeros(2, top, height / factor - top - h)?;
                let share = share.pad_with_zeros(3, left, width / factor - left - w)?;
                match whole.get_mut(frame) {
                    Some(sum) => *sum = (&*sum + share)?,
                    None => whole.push(share),
                }
            }
        }
        Ok(whole)
    }
}

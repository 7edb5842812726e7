//! The seam between a video autoencoder and whoever wants frames of it.

use candle_core::Tensor;

use crate::Result;
use crate::tiling::Blend;

/// The decoder of a video autoencoder: latents to frames, whole or in parts that fit into memory.
pub trait Autoencoder: Send + Sync {
    /// In which parts latents are decoded, and what that takes. // (1, channels, latent frames, height, width)
    fn plan(&self, latents: &[usize; 5], room: Room) -> DecodePlan;

    /// Starts to decode the sampler's latents to so many frames.
    ///
    /// * `latents` - (1, channels, latent frames, height, width), f32
    fn decoder<'a>(&'a self, latents: &Tensor, frames: usize, plan: &DecodePlan) -> Result<Box<dyn Chunks + 'a>>;

    /// Fewest latent frames of which the last chunk takes as long as any of a long clip.
    fn typical_frames(&self) -> usize;
}

/// What decides about the size of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The largest that take no more than so many bytes; `u64::MAX` is whole frames.
    Bytes(u64),
    /// Parts of at most so many pixels each way.
    Pixels(usize),
}

/// In which parts latents are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodePlan {
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

/// A clip that is being decoded.
pub trait Chunks: Send {
    /// What comes next, or `None` after the last.
    fn next_chunk(&mut self) -> Result<Option<Chunk>>;
}

/// A part of a decoded clip.
#[derive(Debug, Clone)]
pub enum Chunk {
    /// Whole frames, the next ones, in [-1, 1]. // (n, 3, height, width)
    Frames(Tensor),
    /// A tile of some frames, to be mixed into what is there.
    Tile {
        /// In [-1, 1]. // (n, 3, rows, columns)
        pixels: Tensor,
        /// Index of the first of the frames.
        first: usize,
        /// Its place and share in each.
        blend: Blend,
    },
    /// One tile of all frames is there.
    TileDone {
        /// From 0.
        index: usize,
        /// Number of tiles.
        tiles: usize,
    },
}

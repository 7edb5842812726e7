//! What a block of a transformer and a chunk of a decoder take, timed on small latents.

use std::time::Instant;

use candle_core::Device;
use navicache_models::{Autoencoder, Branches, Chunk, Room, wait_for};

use crate::machine::computing;
use crate::sizes::Sizes;
use crate::{Result, latents};

/// What one run of one block took.
pub(crate) struct Probe {
    tokens: f64,
    /// Before and after the blocks.
    around: f64,
    block: f64,
    blocks: f64,
}

/// Seconds as a polynomial of tokens: of what is around the blocks, and of all blocks.
pub(crate) struct Fit {
    around: f64,
    linear: f64,
    square: f64,
}

impl Probe {
    /// Seconds of a forward at `tokens` if all of it grew with their power `exponent`.
    pub fn seconds(&self, exponent: f64, tokens: f64) -> f64 {
        (self.around + self.blocks * self.block) * (tokens / self.tokens).powf(exponent)
    }

    pub fn and(&self, other: &Probe) -> Fit {
        // block = linear * n + square * n^2 at both; noise must not make either negative.
        let (a, b) = (self.block / self.tokens, other.block / other.tokens);
        let square = ((b - a) / (other.tokens - self.tokens)).max(0.0);
        let linear = (b - square * other.tokens).max(0.0);
        Fit { around: other.around / other.tokens, linear: self.blocks * linear, square: self.blocks * square }
    }
}

impl Fit {
    pub fn seconds(&self, tokens: f64) -> f64 {
        tokens * (self.around + self.linear + self.square * tokens)
    }
}

/// Runs the first block twice, the first time to have its weights at hand, and times the second.
pub(crate) fn probe(transformer: &dyn Branches, shape: &[usize; 5], tokens: usize, device: &Device) -> Result<Probe> {
    let latents = latents::from_seed(0, shape, device)?;
    let units = &transformer.anatomy().units;
    let first_block = units.iter().take_while(|unit| unit.block == 0).count();
    let blocks = units.last().map_or(1, |unit| unit.block + 1) as f64;
    let mut timed = (0.0, 0.0);
    for _ in 0..2 {
        let clock = Instant::now();
        let mut pass = transformer.begin(0, &latents, 500.0, None)?;
        let begun = clock.elapsed().as_secs_f64();
        for unit in 0..first_block {
            pass.run_unit(unit)?;
        }
        let block = clock.elapsed().as_secs_f64() - begun;
        // Finishing reads a value back, so that nothing is still running when the clock is read.
        wait_for(&pass.finish()?)?;
        timed = (clock.elapsed().as_secs_f64() - block, block);
    }
    Ok(Probe { tokens: tokens as f64, around: timed.0, block: timed.1, blocks })
}

/// Latents each way of the decoder's probe.
const PROBE_LATENTS: usize = 8;

/// Seconds of decoding latents of a shape, from a few latent frames of a small square: as many times the last chunk's,
/// a frame, as there are frames. The first chunk is not like the others.
pub(crate) fn decode_seconds(
    autoencoder: &dyn Autoencoder,
    sizes: &dyn Sizes,
    shape: &[usize; 5],
    device: &Device,
) -> Result<f64> {
    let [one, channels, all, rows, columns] = *shape;
    let few = autoencoder.typical_frames().min(all);
    let small = [one, channels, few, rows.min(PROBE_LATENTS), columns.min(PROBE_LATENTS)];
    let frames = |shape| sizes.video_shape(shape).2;
    let latents = latents::from_seed(0, &small, device)?;
    let mut clock = Instant::now();
    let plan = autoencoder.plan(&small, Room::Bytes(u64::MAX));
    let mut decoding = autoencoder.decoder(&latents, frames(&small), &plan)?;
    let mut per_frame = 0.0;
    while let Some(chunk) = computing(|| decoding.next_chunk())? {
        if let Chunk::Frames(chunk) = chunk {
            wait_for(&chunk)?;
            per_frame = clock.elapsed().as_secs_f64() / chunk.dim(0)?.max(1) as f64;
            clock = Instant::now();
        }
    }
    Ok(per_frame * frames(shape) as f64 * (rows * columns) as f64 / (small[3] * small[4]) as f64)
}

//! The autoencoder. Convolutions see no later frame; the decoder's norms are scaled and shifted by the latents.
//!
//! A clip is decoded two latent frames at a time, the first time three where their number is odd. Norms look at all of
//! such a chunk, so that chunks are part of the result; convolutions remember the frames before.

use std::ops::Range;

use candle_core::Tensor;
use navicache_kernels::{Activation, silu};

use super::VaeConfig;
use crate::autoencoder::{Autoencoder, Chunk, Chunks, DecodePlan, Room};
use crate::nn::{CausalConv3d, Conv2d, ConvState, GroupNorm, Resize};
use crate::tiling::{Blend, Window, largest_window, windows};
use crate::{Error, Result, Weights};

/// Levels, the lowest first, after which time doubles too.
const DOUBLES_TIME: usize = 2;
/// Latent frames of a chunk, but for the first.
const CHUNK: usize = 2;
/// The logarithm of a variance is held between these.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

/// The decoder, and the factor of the latents it was trained with.
pub struct Vae {
    conv_in: CausalConv3d,
    mid_block: [Resnet; 2],
    up_blocks: Vec<UpBlock>,
    norm_out: SpatialNorm,
    conv_out: CausalConv3d,
    config: VaeConfig,
}

impl Vae {
    /// Reads the decoder's weights of `AutoencoderKLCogVideoX`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (decoder, z) = (w.pp("decoder"), config.latent_channels);
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let last = widths.len() - 1;
        let mid = decoder.pp("mid_block").pp("resnets");
        let middle = |i: usize| Resnet::new(config, widths[0], widths[0], Some(z), mid.pp(i));
        let up = |(level, &outputs): (usize, &usize)| {
            let inputs = if level == 0 { outputs } else { widths[level - 1] };
            let w = decoder.pp("up_blocks").pp(level);
            let resnet = |i: usize| {
                let inputs = if i == 0 { inputs } else { outputs };
                Resnet::new(config, inputs, outputs, Some(z), w.pp("resnets").pp(i))
            };
            let upsampler = w.pp("upsamplers").pp(0).pp("conv");
            Ok(UpBlock {
                resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?,
                upsampler: (level < last)
                    .then(|| Conv2d::resizing(outputs, outputs, 3, Resize::Doubled, upsampler))
                    .transpose()?,
                doubles_time: level < DOUBLES_TIME,
            })
        };
        Ok(Vae {
            conv_in: conv(z, widths[0], decoder.pp("conv_in"))?,
            mid_block: [middle(0)?, middle(1)?],
            up_blocks: widths.iter().enumerate().map(up).collect::<Result<_>>()?,
            norm_out: SpatialNorm::new(config, widths[last], z, decoder.pp("norm_out"))?,
            conv_out: conv(widths[last], config.out_channels, decoder.pp("conv_out"))?,
            config: config.clone(),
        })
    }

    /// Starts to decode the decoder's own latents, (1, z, latent frames, height, width), f32.
    pub fn decoder(&self, latents: &Tensor) -> Result<Decoding<'_>> {
        let (_, channels, _, _, _) = latents.dims5()?;
        if channels != self.config.latent_channels {
            return Err(Error::Input {
                what: "channels of the latents",
                expected: format!("{} (latent_channels of vae/config.json)", self.config.latent_channels),
                found: channels.to_string(),
            });
        }
        let latents = latents.squeeze(0)?.transpose(0, 1)?.contiguous()?; // (f, z, h, w)
        Ok(Decoding { vae: self, latents, next: 0, memory: Memory::default() })
    }

    /// The sampler's latents as the decoder's, without the frames that stand before the clip to fill a patch.
    fn of_clip(&self, latents: &Tensor, frames: usize) -> Result<Tensor> {
        let (found, expected) = (latents.dim(2)?, self.config.latent_frames(frames));
        let padding = found.checked_sub(expected).ok_or_else(|| Error::Input {
            what: "latent frames",
            expected: format!("{expected} or more, for {frames} frames"),
            found: found.to_string(),
        })?;
        Ok((latents.narrow(2, padding, expected)? / self.config.scaling_factor)?)
    }

    /// A chunk of latent frames. // (f, z, h, w) -> (frames, 3, 8 h, 8 w)
    fn decode(&self, z: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        memory.rewind();
        let mut x = self.conv_in.forward_repeating(z, memory.next())?;
        for resnet in &self.mid_block {
            x = resnet.forward(&x, Some(z), memory)?;
        }
        for block in &self.up_blocks {
            x = block.forward(&x, z, memory)?;
        }
        let x = silu(&self.norm_out.forward(&x, z)?)?;
        self.conv_out.forward_repeating(&x, memory.next())
    }
}

impl Autoencoder for Vae {
    fn plan(&self, latents: &[usize; 5], room: Room) -> DecodePlan {
        let [_, _, frames, rows, columns] = *latents;
        let factor = self.config.spatial();
        let bytes = |window: &Window| self.config.decode_bytes(window.rows.len(), window.columns.len(), frames);
        let size = match room {
            Room::Pixels(pixels) => (pixels / factor).max(1),
            Room::Bytes(room) => largest_window(rows, columns, |window| bytes(window) <= room),
        };
        let most = windows(rows, columns, size).iter().map(bytes).max().unwrap_or(0);
        DecodePlan::new(size, latents, factor, most)
    }

    fn decoder<'a>(&'a self, latents: &Tensor, frames: usize, plan: &DecodePlan) -> Result<Box<dyn Chunks + 'a>> {
        let latents = self.of_clip(latents, frames)?;
        let (_, _, _, height, width) = latents.dims5()?;
        let windows = windows(height, width, plan.window);
        if windows.len() == 1 {
            return Ok(Box::new(Vae::decoder(self, &latents)?));
        }
        Ok(Box::new(Tiles { vae: self, latents, windows, tile: 0, first: 0, decoding: None }))
    }

    fn typical_frames(&self) -> usize {
        2 * CHUNK + 1
    }
}

impl Chunks for Decoding<'_> {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        Ok(Decoding::next_chunk(self)?.map(Chunk::Frames))
    }
}

/// A clip that is being decoded.
pub struct Decoding<'a> {
    vae: &'a Vae,
    latents: Tensor, // (latent frames, z, h, w)
    next: usize,
    memory: Memory,
}

impl Decoding<'_> {
    /// The next frames, nominally in [-1, 1], or `None` after the last. // (frames, 3, height, width)
    pub fn next_chunk(&mut self) -> Result<Option<Tensor>> {
        let Some(Range { start, end }) = chunk_from(self.next, self.latents.dim(0)?) else { return Ok(None) };
        self.next = end;
        self.vae.decode(&self.latents.narrow(0, start, end - start)?, &mut self.memory).map(Some)
    }
}

/// The chunk that begins with a latent frame.
fn chunk_from(start: usize, frames: usize) -> Option<Range<usize>> {
    let odd = if start == 0 { frames % CHUNK } else { 0 };
    (start < frames).then(|| start..(start + CHUNK + odd).min(frames))
}

/// A clip that is decoded tile by tile, each with a memory of its own.
struct Tiles<'a> {
    vae: &'a Vae,
    latents: Tensor, // (1, z, latent frames, h, w)
    windows: Vec<Window>,
    tile: usize,
    /// Frames of the tile that are decoded.
    first: usize,
    decoding: Option<Decoding<'a>>,
}

impl Chunks for Tiles<'_> {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let Some(window) = self.windows.get(self.tile) else { return Ok(None) };
        let mut decoding = match self.decoding.take() {
            Some(decoding) => decoding,
            None => {
                let rows = self.latents.narrow(3, window.rows.start, window.rows.len())?;
                self.vae.decoder(&rows.narrow(4, window.columns.start, window.columns.len())?)?
            }
        };
        let Some(pixels) = decoding.next_chunk()? else {
            let index = self.tile;
            (self.tile, self.first) = (index + 1, 0);
            return Ok(Some(Chunk::TileDone { index, tiles: self.windows.len() }));
        };
        let first = self.first;
        self.first += pixels.dim(0)?;
        self.decoding = Some(decoding);
        let blend = Blend::new(&self.windows, window, self.vae.config.spatial());
        Ok(Some(Chunk::Tile { pixels, first, blend }))
    }
}

/// The encoder, for one picture.
pub struct VaeEncoder {
    conv_in: CausalConv3d,
    down_blocks: Vec<(Vec<Resnet>, Option<Conv2d>)>,
    mid_block: [Resnet; 2],
    norm_out: GroupNorm,
    conv_out: CausalConv3d,
    config: VaeConfig,
}

impl VaeEncoder {
    /// Reads the encoder's weights of `AutoencoderKLCogVideoX`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (encoder, z, widths) = (w.pp("encoder"), config.latent_channels, &config.block_out_channels);
        let last = widths.len() - 1;
        let mid = encoder.pp("mid_block").pp("resnets");
        let middle = |i: usize| Resnet::new(config, widths[last], widths[last], None, mid.pp(i));
        let down = |(level, &outputs): (usize, &usize)| {
            let inputs = if level == 0 { outputs } else { widths[level - 1] };
            let w = encoder.pp("down_blocks").pp(level);
            let resnet = |i: usize| {
                let inputs = if i == 0 { inputs } else { outputs };
                Resnet::new(config, inputs, outputs, None, w.pp("resnets").pp(i))
            };
            let downsampler = w.pp("downsamplers").pp(0).pp("conv");
            let halves = (level < last).then(|| Conv2d::resizing(outputs, outputs, 3, Resize::Halved, downsampler));
            Ok(((0..config.layers_per_block).map(resnet).collect::<Result<Vec<_>>>()?, halves.transpose()?))
        };
        Ok(VaeEncoder {
            conv_in: conv(config.out_channels, widths[0], encoder.pp("conv_in"))?,
            down_blocks: widths.iter().enumerate().map(down).collect::<Result<_>>()?,
            mid_block: [middle(0)?, middle(1)?],
            norm_out: GroupNorm::new(widths[last], config.norm_num_groups, config.norm_eps, encoder.pp("norm_out"))?,
            conv_out: conv(widths[last], 2 * z, encoder.pp("conv_out"))?,
            config: config.clone(),
        })
    }

    /// Mean and deviation of a picture's latents. // (1, 3, height, width) -> (1, z, 1, h, w) each
    pub fn encode(&self, picture: &Tensor) -> Result<(Tensor, Tensor)> {
        let memory = &mut Memory::default();
        let mut x = self.conv_in.forward_repeating(picture, memory.next())?;
        for (resnets, halves) in &self.down_blocks {
            for resnet in resnets {
                x = resnet.forward(&x, None, memory)?;
            }
            if let Some(conv) = halves {
                x = conv.forward(&x)?;
            }
        }
        for resnet in &self.mid_block {
            x = resnet.forward(&x, None, memory)?;
        }
        let x = self.norm_out.forward(&x, Activation::Silu)?;
        let moments = self.conv_out.forward_repeating(&x, memory.next())?; // (1, 2 z, h, w)
        let z = self.config.latent_channels;
        let log_variance = moments.narrow(1, z, z)?.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1)?;
        Ok((moments.narrow(1, 0, z)?.unsqueeze(2)?, (log_variance * 0.5)?.exp()?.unsqueeze(2)?))
    }
}

/// What every convolution over time remembers of a clip, in the order they run.
#[derive(Default)]
struct Memory {
    states: Vec<ConvState>,
    next: usize,
}

impl Memory {
    fn rewind(&mut self) {
        self.next = 0;
    }

    fn next(&mut self) -> &mut ConvState {
        self.next += 1;
        if self.states.len() < self.next {
            self.states.push(ConvState::default());
        }
        &mut self.states[self.next - 1]
    }
}

fn conv(inputs: usize, outputs: usize, w: Weights) -> Result<CausalConv3d> {
    CausalConv3d::new(inputs, outputs, 3, 3, w.pp("conv"))
}

/// A norm whose scale and shift the latents give, at every place: those of the encoder are plain.
enum Norm {
    Plain(GroupNorm),
    Spatial(Box<SpatialNorm>),
}

impl Norm {
    fn new(config: &VaeConfig, dim: usize, z: Option<usize>, w: Weights) -> Result<Self> {
        Ok(match z {
            Some(z) => Norm::Spatial(Box::new(SpatialNorm::new(config, dim, z, w)?)),
            None => Norm::Plain(GroupNorm::new(dim, config.norm_num_groups, config.norm_eps, w)?),
        })
    }

    fn silu(&self, x: &Tensor, z: Option<&Tensor>) -> Result<Tensor> {
        match (self, z) {
            (Norm::Spatial(norm), Some(z)) => Ok(silu(&norm.forward(x, z)?)?),
            (Norm::Spatial(norm), None) => norm.norm_layer.forward(x, Activation::Silu),
            (Norm::Plain(norm), _) => norm.forward(x, Activation::Silu),
        }
    }
}

/// Norm of groups, then `x * conv_y(z) + conv_b(z)` with the chunk's latents, each stretched over what it stands for.
struct SpatialNorm {
    norm_layer: GroupNorm,
    conv_y: CausalConv3d,
    conv_b: CausalConv3d,
}

impl SpatialNorm {
    fn new(config: &VaeConfig, dim: usize, z: usize, w: Weights) -> Result<Self> {
        let conv = |name: &str| CausalConv3d::new(z, dim, 1, 1, w.pp(name).pp("conv"));
        // Its epsilon is no field of the configuration.
        const EPSILON: f64 = 1e-6;
        Ok(SpatialNorm {
            norm_layer: GroupNorm::new(dim, config.norm_num_groups, EPSILON, w.pp("norm_layer"))?,
            conv_y: conv("conv_y")?,
            conv_b: conv("conv_b")?,
        })
    }

    /// (frames, dim, height, width), (latent frames, z, h, w) -> (frames, dim, height, width)
    fn forward(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let (frames, dim, height, width) = x.dims4()?;
        let (latent_frames, _, h, w) = z.dims4()?;
        let (down, across) = (height / h, width / w);
        let of_frame: Vec<u32> = (0..frames).map(|frame| latent_of(frame, frames, latent_frames) as u32).collect();
        let of_frame = Tensor::new(of_frame, x.device())?;
        let stretched = |conv: &CausalConv3d| -> Result<Tensor> {
            Ok(conv.clip(z)?.index_select(&of_frame, 0)?.reshape(&[frames, dim, h, 1, w, 1][..])?)
        };
        let x = self.norm_layer.forward(x, Activation::None)?.reshape(&[frames, dim, h, down, w, across][..])?;
        let x = x.broadcast_mul(&stretched(&self.conv_y)?)?.broadcast_add(&stretched(&self.conv_b)?)?;
        Ok(x.reshape((frames, dim, height, width))?)
    }
}

/// The latent frame that a frame of a chunk stands for: of an odd number, the first alone stands for the first.
fn latent_of(frame: usize, frames: usize, latent_frames: usize) -> usize {
    match (frames, frame) {
        (1, _) | (_, 0) => 0,
        _ if frames % 2 == 1 => 1 + (frame - 1) * latent_frames.saturating_sub(1) / (frames - 1),
        _ => frame * latent_frames / frames,
    }
}

struct Resnet {
    norm1: Norm,
    conv1: CausalConv3d,
    norm2: Norm,
    conv2: CausalConv3d,
    conv_shortcut: Option<CausalConv3d>,
}

impl Resnet {
    /// `z`: channels of the latents that give the norms their scale, in the decoder.
    fn new(config: &VaeConfig, inputs: usize, outputs: usize, z: Option<usize>, w: Weights) -> Result<Self> {
        let shortcut = (inputs != outputs).then(|| CausalConv3d::new(inputs, outputs, 1, 1, w.pp("conv_shortcut")));
        Ok(Resnet {
            norm1: Norm::new(config, inputs, z, w.pp("norm1"))?,
            conv1: conv(inputs, outputs, w.pp("conv1"))?,
            norm2: Norm::new(config, outputs, z, w.pp("norm2"))?,
            conv2: conv(outputs, outputs, w.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, z: Option<&Tensor>, memory: &mut Memory) -> Result<Tensor> {
        let h = self.conv1.forward_repeating(&self.norm1.silu(x, z)?, memory.next())?;
        let h = self.conv2.forward_repeating(&self.norm2.silu(&h, z)?, memory.next())?;
        Ok(match &self.conv_shortcut {
            Some(conv) => (conv.clip(x)? + h)?,
            None => (x + h)?,
        })
    }
}

struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<Conv2d>,
    doubles_time: bool,
}

impl UpBlock {
    fn forward(&self, x: &Tensor, z: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x, Some(z), memory)?;
        }
        let Some(conv) = &self.upsampler else { return Ok(x) };
        // The convolution sees one frame, so that it may come before frames are doubled.
        let x = conv.forward(&x)?;
        let frames = x.dim(0)?;
        if !self.doubles_time || frames == 1 {
            return Ok(x);
        }
        // Of an odd number the first stands alone.
        let alone = frames % 2;
        let doubled: Vec<u32> = (0..alone).chain((alone..frames).flat_map(|i| [i, i])).map(|i| i as u32).collect();
        Ok(x.index_select(&Tensor::new(doubled, x.device())?, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_two_latent_frames_and_the_odd_one_first() {
        let chunks = |frames: usize| {
            let mut next = 0;
            std::iter::from_fn(move || chunk_from(next, frames).inspect(|chunk| next = chunk.end)).collect::<Vec<_>>()
        };
        assert_eq!(chunks(1), vec![std::ops::Range { start: 0, end: 1 }]);
        assert_eq!(chunks(2), vec![std::ops::Range { start: 0, end: 2 }]);
        assert_eq!(chunks(5), [0..3, 3..5]);
        assert_eq!(chunks(13).len(), 6);
    }

    #[test]
    fn frames_and_the_latents_they_stand_for() {
        let of = |frames, latent_frames| {
            (0..frames).map(|frame| latent_of(frame, frames, latent_frames)).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 1), [0]);
        assert_eq!(of(4, 2), [0, 0, 1, 1]);
        assert_eq!(of(3, 3), [0, 1, 2]);
        assert_eq!(of(9, 3), [0, 1, 1, 1, 1, 2, 2, 2, 2]);
    }
}

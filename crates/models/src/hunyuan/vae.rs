//! The decoder.
//!
//! Its norms look at a whole clip, so a long one is decoded in windows of time that overlap and are blended, as the
//! model was published: five latent frames at a time, every three. Where memory is short, windows of space too.

use candle_core::{Device, Tensor};
use navicache_kernels::Activation;

use super::VaeConfig;
use crate::autoencoder::{Autoencoder, Chunk, Chunks, DecodePlan, Room};
use crate::nn::{CausalConv3d, Edge, GroupNorm, Linear, Resize, attention};
use crate::{Error, Precision, Result, Weights};

/// Epsilon of the norms, which no configuration names.
const EPSILON: f64 = 1e-6;
/// Latent frames from one window of time to the next. A window has one more than it would need for itself and its
/// overlap, for the frame that a clip begins with stands alone.
const TIME_STRIDE: usize = 3;
/// Latent frames of a window of time beside its first; a clip of at most so many is decoded at once.
const TIME_WINDOW: usize = 4;

/// Tiles smaller than this are no use: most of them would be what they share.
const SMALLEST_TILE: usize = 16;

/// Windows of space, in latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Height and width of a tile; a frame that is no larger is not cut.
    pub size: usize,
    /// From one tile to the next.
    pub stride: usize,
}

impl Tiles {
    /// Those of the reference: 256 pixels every 192.
    pub const PUBLISHED: Tiles = Tiles { size: 32, stride: 24 };

    /// Tiles of a size; a quarter of a tile is shared with the next, as in the published ones.
    fn of(size: usize) -> Tiles {
        Tiles { size, stride: size - size / 4 }
    }
}

/// The decoder, and the factor of the latents it was trained with.
pub struct Vae {
    post_quant_conv: CausalConv3d,
    conv_in: CausalConv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: CausalConv3d,
    config: VaeConfig,
}

impl Vae {
    /// Reads the decoder's weights of `AutoencoderKLHunyuanVideo`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let (decoder, z, groups) = (w.pp("decoder"), config.latent_channels, config.norm_num_groups);
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (widest, narrowest) = (widths[0], widths[widths.len() - 1]);
        let mut up_blocks = Vec::new();
        let mut inputs = widest;
        for (level, &outputs) in widths.iter().enumerate() {
            let last = widths.len() - 1;
            let space = level < config.spatial_compression_ratio.ilog2() as usize;
            let time = level + 2 >= last && level < last;
            let doubles = (space || time).then_some(Doubles { space, time });
            let shape = (inputs, outputs, config.layers_per_block + 1, groups);
            up_blocks.push(UpBlock::new(shape, doubles, decoder.pp("up_blocks").pp(level))?);
            inputs = outputs;
        }
        Ok(Vae {
            post_quant_conv: CausalConv3d::new(z, z, 1, 1, w.pp("post_quant_conv"))?,
            conv_in: conv(z, widest, 3, decoder.pp("conv_in"))?,
            mid_block: MidBlock::new(widest, groups, config.mid_block_add_attention, decoder.pp("mid_block"))?,
            up_blocks,
            conv_norm_out: GroupNorm::new(narrowest, groups, EPSILON, decoder.pp("conv_norm_out"))?,
            conv_out: conv(narrowest, config.out_channels, 3, decoder.pp("conv_out"))?,
            config: config.clone(),
        })
    }

    /// From the sampler's latents to the decoder's. // (1, z, f, h, w)
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        Ok((latents / self.config.scaling_factor)?)
    }

    /// Starts to decode latents, (1, z, latent frames, height, width), f32. `tiles`: whether frames are cut too.
    pub fn decoder(&self, latents: &Tensor, tiles: Option<Tiles>) -> Result<Decoding<'_>> {
        let (_, channels, frames, _, _) = latents.dims5()?;
        if channels != self.config.latent_channels {
            return Err(Error::Input {
                what: "channels of the latents",
                expected: format!("{} (latent_channels of vae/config.json)", self.config.latent_channels),
                found: channels.to_string(),
            });
        }
        let latents = latents.squeeze(0)?.transpose(0, 1)?.contiguous()?; // (f, z, h, w)
        Ok(Decoding { vae: self, latents, tiles, frames, next: 0, before: None })
    }

    /// A clip of few latent frames at once. // (f, z, h, w) -> (4 (f - 1) + 1, 3, 8 h, 8 w)
    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.clip(&self.post_quant_conv.clip(z)?)?;
        let mut x = self.mid_block.forward(&x)?;
        for block in &self.up_blocks {
            x = block.forward(&x)?;
        }
        self.conv_out.clip(&self.conv_norm_out.forward(&x, Activation::Silu)?)
    }

    /// The same in windows of space, each blended with those above and to the left of it.
    fn decode_tiled(&self, z: &Tensor, tiles: Option<Tiles>) -> Result<Tensor> {
        let (_, _, height, width) = z.dims4()?;
        let Some(Tiles { size, stride }) = tiles.filter(|tiles| height.max(width) > tiles.size) else {
            return self.decode(z);
        };
        let factor = self.config.spatial_compression_ratio;
        let (overlap, kept) = ((size - stride) * factor, stride * factor);
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..height).step_by(stride) {
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in (0..width).step_by(stride).enumerate() {
                let part = z.narrow(2, top, size.min(height - top))?.narrow(3, left, size.min(width - left))?;
                let mut tile = self.decode(&part.contiguous()?)?;
                if let Some(above) = above.get(column) {
                    tile = blend(above, &tile, 2, overlap)?;
                }
                if let Some(before) = row.last() {
                    tile = blend(before, &tile, 3, overlap)?;
                }
                row.push(tile);
            }
            let cut = row.iter().map(|tile| -> Result<Tensor> {
                Ok(tile.narrow(2, 0, kept.min(tile.dim(2)?))?.narrow(3, 0, kept.min(tile.dim(3)?))?)
            });
            rows.push(Tensor::cat(&cut.collect::<Result<Vec<_>>>()?, 3)?);
            above = row;
        }
        let whole = Tensor::cat(&rows, 2)?;
        Ok(whole.narrow(2, 0, height * factor)?.narrow(3, 0, width * factor)?)
    }
}

impl VaeConfig {
    /// Bytes of decoding tiles of so many latents each way.
    fn tile_bytes(&self, tile: usize, [_, _, frames, rows, columns]: &[usize; 5]) -> u64 {
        let (space, time) = (self.spatial_compression_ratio, self.temporal_compression_ratio);
        let count = frames.saturating_sub(1) * time + 1;
        // Windows of time are blended as f32, whole frames of them.
        let kept = 3 * (columns * space) * (rows * space) * (count + 3 * 4 * 17);
        self.decode_bytes((*rows).min(tile), (*columns).min(tile), *frames) + kept as u64
    }
}

impl Autoencoder for Vae {
    /// Whole frames where they fit, else the published tiles, else smaller ones.
    fn plan(&self, latents: &[usize; 5], room: Room) -> DecodePlan {
        let [_, _, _, rows, columns] = *latents;
        let factor = self.config.spatial_compression_ratio;
        let tile = match room {
            Room::Pixels(pixels) => (pixels / factor).max(SMALLEST_TILE),
            Room::Bytes(room) => {
                let smaller = (SMALLEST_TILE..=Tiles::PUBLISHED.size).rev().step_by(4);
                let mut sizes = std::iter::once(rows.max(columns)).chain(smaller);
                sizes.find(|&size| self.config.tile_bytes(size, latents) <= room).unwrap_or(SMALLEST_TILE)
            }
        };
        DecodePlan::new(tile, latents, factor, self.config.tile_bytes(tile, latents))
    }

    fn decoder<'a>(&'a self, latents: &Tensor, _: usize, plan: &DecodePlan) -> Result<Box<dyn Chunks + 'a>> {
        Ok(Box::new(Vae::decoder(self, &self.denormalize(latents)?, Some(Tiles::of(plan.window)))?))
    }

    fn typical_frames(&self) -> usize {
        TIME_WINDOW
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
    tiles: Option<Tiles>,
    frames: usize,
    next: usize,
    /// The window of time before, without the frame it begins with.
    before: Option<Tensor>,
}

impl Decoding<'_> {
    /// The next frames, in [-1, 1], or `None` after the last. // (frames, 3, height, width)
    pub fn next_chunk(&mut self) -> Result<Option<Tensor>> {
        let first = self.next;
        if first >= self.frames {
            return Ok(None);
        }
        let factor = self.vae.config.temporal_compression_ratio;
        if self.frames <= TIME_WINDOW {
            self.next = self.frames;
            return Ok(Some(self.vae.decode_tiled(&self.latents, self.tiles)?.clamp(-1.0, 1.0)?));
        }
        self.next += TIME_STRIDE;
        let window = self.latents.narrow(0, first, (TIME_WINDOW + 1).min(self.frames - first))?;
        let decoded = self.vae.decode_tiled(&window.contiguous()?, self.tiles)?;
        let Some(before) = self.before.take() else {
            let kept = decoded.narrow(0, 0, (TIME_STRIDE * factor + 1).min(decoded.dim(0)?))?;
            self.before = Some(decoded);
            return Ok(Some(kept.clamp(-1.0, 1.0)?));
        };
        // The frame that a window begins with stands for one; the window before has it better.
        let count = decoded.dim(0)? - 1;
        if count == 0 {
            return Ok(None);
        }
        let blended = blend(&before, &decoded.narrow(0, 1, count)?, 0, (TIME_WINDOW - TIME_STRIDE) * factor)?;
        let kept = blended.narrow(0, 0, (TIME_STRIDE * factor).min(count))?;
        self.before = Some(blended);
        Ok(Some(kept.clamp(-1.0, 1.0)?))
    }
}

/// `b` with its first places along a dimension mixed with the last of `a`.
fn blend(a: &Tensor, b: &Tensor, dim: usize, overlap: usize) -> Result<Tensor> {
    let overlap = overlap.min(a.dim(dim)?).min(b.dim(dim)?);
    let mut shape = [1; 4];
    shape[dim] = overlap;
    let share: Vec<f32> = (0..overlap).map(|i| i as f32 / overlap as f32).collect();
    let share = Tensor::from_vec(share, &shape[..], &Device::Cpu)?.to_device(b.device())?;
    let (old, new) = (a.narrow(dim, a.dim(dim)? - overlap, overlap)?, b.narrow(dim, 0, overlap)?);
    let mixed = (old.broadcast_mul(&share.affine(-1.0, 1.0)?)? + new.broadcast_mul(&share)?)?;
    Ok(Tensor::cat(&[&mixed, &b.narrow(dim, overlap, b.dim(dim)? - overlap)?], dim)?)
}

fn conv(inputs: usize, outputs: usize, size: usize, w: Weights) -> Result<CausalConv3d> {
    CausalConv3d::with_edge([inputs, outputs, size, size], Edge::Repeated, Resize::Same, w.pp("conv"))
}

struct Resnet {
    norm1: GroupNorm,
    conv1: CausalConv3d,
    norm2: GroupNorm,
    conv2: CausalConv3d,
    conv_shortcut: Option<CausalConv3d>,
}

impl Resnet {
    fn new(inputs: usize, outputs: usize, groups: usize, w: Weights) -> Result<Self> {
        let shortcut = (inputs != outputs).then(|| conv(inputs, outputs, 1, w.pp("conv_shortcut")));
        Ok(Resnet {
            norm1: GroupNorm::new(inputs, groups, EPSILON, w.pp("norm1"))?,
            conv1: conv(inputs, outputs, 3, w.pp("conv1"))?,
            norm2: GroupNorm::new(outputs, groups, EPSILON, w.pp("norm2"))?,
            conv2: conv(outputs, outputs, 3, w.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.conv1.clip(&self.norm1.forward(x, Activation::Silu)?)?;
        h = self.norm2.forward(&h, Activation::Silu)?;
        match &self.conv_shortcut {
            Some(conv) => self.conv2.clip_onto(&conv.clip(x)?, &h),
            None => self.conv2.clip_onto(x, &h),
        }
    }
}

struct MidBlock {
    resnets: [Resnet; 2],
    attention: Option<ClipAttention>,
}

impl MidBlock {
    fn new(dim: usize, groups: usize, attends: bool, w: Weights) -> Result<Self> {
        let resnet = |i: usize| Resnet::new(dim, dim, groups, w.pp("resnets").pp(i));
        let attention = attends.then(|| ClipAttention::new(dim, groups, w.pp("attentions").pp(0)));
        Ok(MidBlock { resnets: [resnet(0)?, resnet(1)?], attention: attention.transpose()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.resnets[0].forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnets[1].forward(&x)
    }
}

/// Attention of one head among the pixels of a clip; none sees a later frame.
struct ClipAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl ClipAttention {
    fn new(dim: usize, groups: usize, w: Weights) -> Result<Self> {
        Ok(ClipAttention {
            group_norm: GroupNorm::new(dim, groups, EPSILON, w.pp("group_norm"))?,
            to_q: Linear::new(dim, dim, w.pp("to_q"))?,
            to_k: Linear::new(dim, dim, w.pp("to_k"))?,
            to_v: Linear::new(dim, dim, w.pp("to_v"))?,
            to_out: Linear::new(dim, dim, w.pp("to_out").pp(0))?,
        })
    }

    /// (frames, dim, h, w) -> (frames, dim, h, w)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (frames, dim, height, width) = x.dims4()?;
        let pixels = height * width;
        let tokens =
            self.group_norm.forward(x, Activation::None)?.permute((0, 2, 3, 1))?.reshape((frames * pixels, dim))?;
        let [q, k, v] =
            [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(&tokens)?.unsqueeze(0).map_err(Error::from));
        let (q, k, v) = (q?, k?, v?); // (1, tokens, dim)
        let scale = 1.0 / (dim as f64).sqrt();
        let mixed = (0..frames).map(|frame| {
            let seen = (frame + 1) * pixels;
            let (k, v) = (k.narrow(1, 0, seen)?.contiguous()?, v.narrow(1, 0, seen)?.contiguous()?);
            attention(&q.narrow(1, frame * pixels, pixels)?.contiguous()?, &k, &v, scale, None, Precision::F32)
        });
        let mixed = Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)?; // (tokens, dim)
        let out = self.to_out.forward(&mixed)?.reshape((frames, height, width, dim))?.permute((0, 3, 1, 2))?;
        Ok((x + out)?)
    }
}

/// What an upsampler doubles.
#[derive(Debug, Clone, Copy)]
struct Doubles {
    space: bool,
    time: bool,
}

struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<(Doubles, CausalConv3d)>,
}

impl UpBlock {
    /// `shape`: channels in and out, residual blocks, groups.
    fn new(shape: (usize, usize, usize, usize), doubles: Option<Doubles>, w: Weights) -> Result<Self> {
        let (inputs, outputs, count, groups) = shape;
        let resnet = |i| Resnet::new(if i == 0 { inputs } else { outputs }, outputs, groups, w.pp("resnets").pp(i));
        let upsampler = doubles.map(|doubles| -> Result<(Doubles, CausalConv3d)> {
            let resize = if doubles.space { Resize::Doubled } else { Resize::Same };
            let (shape, w) = ([outputs, outputs, 3, 3], w.pp("upsamplers").pp(0).pp("conv").pp("conv"));
            Ok((doubles, CausalConv3d::with_edge(shape, Edge::Repeated, resize, w)?))
        });
        Ok(UpBlock { resnets: (0..count).map(resnet).collect::<Result<_>>()?, upsampler: upsampler.transpose()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        let Some((doubles, conv)) = &self.upsampler else { return Ok(x) };
        let frames = x.dim(0)?;
        if doubles.time && frames > 1 {
            // The first frame stays one.
            let twice: Vec<u32> = (0..frames as u32).flat_map(|frame| [frame, frame]).skip(1).collect();
            x = x.index_select(&Tensor::new(twice, x.device())?, 0)?;
        }
        conv.clip(&x)
    }
}

//! The decoder, in two steps: chunks of latent frames become latents of single frames, and each of those a picture.
//!
//! The norms of the first step look at a whole chunk, and chunks know nothing of each other; the second step knows
//! nothing of other frames.

use candle_core::Tensor;
use navicache_kernels::Activation;

use super::{FrameVaeConfig, TimeVaeConfig, VaeConfig};
use crate::autoencoder::{Autoencoder, Chunk, Chunks, DecodePlan, Room};
use crate::nn::{CausalConv3d, Conv2d, GroupNorm, Linear, Resize, attention};
use crate::{Error, Precision, Result, Weights};

/// What latents of single frames are multiplied by before the autoencoder over time, whatever the configurations say.
const FRAME_SCALE: f64 = 0.18215;
/// Epsilon of the norms over time, which no configuration names.
const TIME_EPSILON: f64 = 1e-5;
/// Epsilon of those in a frame.
const FRAME_EPSILON: f64 = 1e-6;

/// The decoder, and the distribution of the latents it was trained with.
pub struct Vae {
    scale: Tensor, // (1, channels, 1, 1, 1)
    shift: Tensor, // (1, channels, 1, 1, 1)
    temporal_vae: TimeDecoder,
    spatial_vae: FrameDecoder,
    config: VaeConfig,
}

impl Vae {
    /// Reads the decoders' weights of `VideoAutoencoderPipeline`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let statistic = |name: &str| w.f32(name, &[1, config.vae_temporal.embed_dim, 1, 1, 1]);
        Ok(Vae {
            scale: statistic("scale")?,
            shift: statistic("shift")?,
            temporal_vae: TimeDecoder::new(&config.vae_temporal, w.pp("temporal_vae"))?,
            spatial_vae: FrameDecoder::new(&config.vae_2d_config, w.pp("spatial_vae").pp("module"))?,
            config: config.clone(),
        })
    }

    /// From the sampler's latents to the decoder's. // (1, channels, f, h, w)
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?)
    }

    /// Starts to decode latents, (1, channels, latent frames, height, width), f32, to so many frames.
    pub fn decoder(&self, latents: &Tensor, frames: usize) -> Result<Decoding<'_>> {
        let (_, channels, latent_frames, _, _) = latents.dims5()?;
        let expected = (self.config.vae_temporal.embed_dim, self.config.latent_frames(frames));
        if (channels, latent_frames) != expected {
            return Err(Error::Input {
                what: "shape of the latents",
                expected: format!("{} channels, and {} latent frames for {frames} frames", expected.0, expected.1),
                found: format!("{:?}", latents.dims()),
            });
        }
        let latents = latents.squeeze(0)?.transpose(0, 1)?.contiguous()?; // (f, channels, h, w)
        Ok(Decoding { vae: self, latents, chunk: Vec::new().into_iter(), next: 0, frames })
    }
}

impl Autoencoder for Vae {
    /// Whole frames always, one at a time: the norms look at all of a frame.
    fn plan(&self, latents: &[usize; 5], _: Room) -> DecodePlan {
        let [_, _, frames, rows, columns] = *latents;
        let (config, factor) = (&self.config, self.config.space_factor());
        let pixels = 3 * (columns * factor) * (rows * factor) * config.frames_of(frames);
        let bytes = config.decode_bytes(rows, columns, frames) + pixels as u64;
        DecodePlan::new(rows.max(columns), latents, factor, bytes)
    }

    fn decoder<'a>(&'a self, latents: &Tensor, frames: usize, _: &DecodePlan) -> Result<Box<dyn Chunks + 'a>> {
        Ok(Box::new(Vae::decoder(self, &self.denormalize(latents)?, frames)?))
    }

    fn typical_frames(&self) -> usize {
        self.config.micro_latent_frames()
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
    latents: Tensor, // (latent frames, channels, h, w)
    /// Latents of single frames of the chunk under way. // (channels, h, w) each
    chunk: std::vec::IntoIter<Tensor>,
    /// The latent frame that the next chunk begins with.
    next: usize,
    /// Frames of the chunks to come.
    frames: usize,
}

impl Decoding<'_> {
    /// The next frame, nominally in [-1, 1], or `None` after the last. // (1, 3, height, width)
    pub fn next_chunk(&mut self) -> Result<Option<Tensor>> {
        if self.chunk.len() == 0 && self.frames > 0 {
            self.chunk = self.decode_time()?.into_iter();
        }
        let Some(frame) = self.chunk.next() else { return Ok(None) };
        self.vae.spatial_vae.forward(&(frame.unsqueeze(0)? / FRAME_SCALE)?).map(Some)
    }

    /// Latents of the next chunk's frames.
    fn decode_time(&mut self) -> Result<Vec<Tensor>> {
        let config = &self.vae.config;
        let frames = self.frames.min(config.micro_frame_size);
        let latent_frames = config.latent_frames(frames);
        let decoded = self.vae.temporal_vae.forward(&self.latents.narrow(0, self.next, latent_frames)?)?;
        self.next += latent_frames;
        self.frames -= frames;
        // The encoder stood zeros before frames that are no multiple; what became of them goes.
        let zeros = decoded.dim(0)? - frames;
        (zeros..decoded.dim(0)?).map(|frame| Ok(decoded.get(frame)?)).collect()
    }
}

/// From latent frames to latents of every frame.
struct TimeDecoder {
    post_quant_conv: CausalConv3d,
    conv1: CausalConv3d,
    res_blocks: Vec<TimeBlock>,
    /// From the shortest to full length, each with the convolution that doubles time after it, if one does.
    block_res_blocks: Vec<(Vec<TimeBlock>, Option<CausalConv3d>)>,
    norm1: GroupNorm,
    conv_out: CausalConv3d,
}

impl TimeDecoder {
    fn new(config: &TimeVaeConfig, w: Weights) -> Result<Self> {
        let (decoder, groups, n) = (w.pp("decoder"), config.num_groups, config.num_res_blocks);
        let (z, inner, channels) = (config.embed_dim, config.latent_embed_dim, config.in_out_channels);
        let widths = config.widths();
        let (narrowest, widest) = (widths[0], widths[widths.len() - 1]);
        let mut levels = Vec::new();
        let mut inputs = widest;
        for (level, &width) in widths.iter().enumerate().rev() {
            let blocks = TimeBlock::row(inputs, width, n, groups, decoder.pp("block_res_blocks").pp(level))?;
            let doubles = level.checked_sub(1).filter(|&shorter| config.temporal_downsample[shorter]);
            let conv = doubles.map(|i| time_conv(width, 2 * width, 3, decoder.pp("conv_blocks").pp(i)));
            levels.push((blocks, conv.transpose()?));
            inputs = width;
        }
        Ok(TimeDecoder {
            post_quant_conv: time_conv(z, inner, 1, w.pp("post_quant_conv"))?,
            conv1: time_conv(inner, widest, 3, decoder.pp("conv1"))?,
            res_blocks: TimeBlock::row(widest, widest, n, groups, decoder.pp("res_blocks"))?,
            block_res_blocks: levels,
            norm1: GroupNorm::new(narrowest, groups, TIME_EPSILON, decoder.pp("norm1"))?,
            conv_out: time_conv(narrowest, channels, 3, decoder.pp("conv_out"))?,
        })
    }

    /// A chunk at once. // (latent frames, z, h, w) -> (frames, channels, h, w)
    fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let mut x = self.conv1.clip(&self.post_quant_conv.clip(z)?)?;
        for block in &self.res_blocks {
            x = block.forward(&x)?;
        }
        for (blocks, doubles) in &self.block_res_blocks {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if let Some(conv) = doubles {
                // Neighbouring channels are neighbouring frames.
                let (frames, dim, height, width) = x.dims4()?;
                x = conv.clip(&x)?.reshape((frames, dim, 2, height * width))?.transpose(1, 2)?.contiguous()?;
                x = x.reshape((2 * frames, dim, height, width))?;
            }
        }
        self.conv_out.clip(&self.norm1.forward(&x, Activation::Silu)?)
    }
}

fn time_conv(inputs: usize, outputs: usize, size: usize, w: Weights) -> Result<CausalConv3d> {
    CausalConv3d::new(inputs, outputs, size, size, w.pp("conv"))
}

/// A residual block over time; its convolutions have no biases.
struct TimeBlock {
    norm1: GroupNorm,
    conv1: CausalConv3d,
    norm2: GroupNorm,
    conv2: CausalConv3d,
    conv3: Option<CausalConv3d>,
}

impl TimeBlock {
    /// Several in a row, of which the first changes the width.
    fn row(inputs: usize, outputs: usize, n: usize, groups: usize, w: Weights) -> Result<Vec<Self>> {
        (0..n).map(|i| TimeBlock::new(if i == 0 { inputs } else { outputs }, outputs, groups, w.pp(i))).collect()
    }

    fn new(inputs: usize, outputs: usize, groups: usize, w: Weights) -> Result<Self> {
        let conv = |name: &str, inputs: usize, size: usize| {
            CausalConv3d::without_bias(inputs, outputs, size, size, w.pp(name).pp("conv"))
        };
        Ok(TimeBlock {
            norm1: GroupNorm::new(inputs, groups, TIME_EPSILON, w.pp("norm1"))?,
            conv1: conv("conv1", inputs, 3)?,
            norm2: GroupNorm::new(outputs, groups, TIME_EPSILON, w.pp("norm2"))?,
            conv2: conv("conv2", outputs, 3)?,
            conv3: (inputs != outputs).then(|| conv("conv3", inputs, 1)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.conv1.clip(&self.norm1.forward(x, Activation::Silu)?)?;
        h = self.norm2.forward(&h, Activation::Silu)?;
        match &self.conv3 {
            Some(conv) => self.conv2.clip_onto(&conv.clip(x)?, &h),
            None => self.conv2.clip_onto(x, &h),
        }
    }
}

/// From the latents of a frame to its pixels. It takes one frame at a time: its norms look at no other.
struct FrameDecoder {
    post_quant_conv: Conv2d,
    conv_in: Conv2d,
    resnets: [FrameBlock; 2],
    attention: FrameAttention,
    /// From the lowest to full resolution, each with the convolution after the doubling that follows, if one does.
    up_blocks: Vec<(Vec<FrameBlock>, Option<Conv2d>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl FrameDecoder {
    fn new(config: &FrameVaeConfig, w: Weights) -> Result<Self> {
        let (decoder, groups, z) = (w.pp("decoder"), config.norm_num_groups, config.latent_channels);
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let last = widths.len() - 1;
        let (widest, narrowest) = (widths[0], widths[last]);
        let mid = decoder.pp("mid_block");
        let resnet = |i: usize| FrameBlock::new(widest, widest, groups, mid.pp("resnets").pp(i));
        let mut up_blocks = Vec::new();
        let mut inputs = widest;
        for (level, &width) in widths.iter().enumerate() {
            let block = decoder.pp("up_blocks").pp(level);
            let resnet = |i: usize| {
                FrameBlock::new(if i == 0 { inputs } else { width }, width, groups, block.pp("resnets").pp(i))
            };
            let resnets = (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?;
            let upsampler = block.pp("upsamplers").pp(0).pp("conv");
            let conv = || Conv2d::resizing(width, width, 3, Resize::Doubled, upsampler);
            up_blocks.push((resnets, (level < last).then(conv).transpose()?));
            inputs = width;
        }
        Ok(FrameDecoder {
            post_quant_conv: Conv2d::new(z, z, 1, w.pp("post_quant_conv"))?,
            conv_in: Conv2d::new(z, widest, 3, decoder.pp("conv_in"))?,
            resnets: [resnet(0)?, resnet(1)?],
            attention: FrameAttention::new(widest, groups, mid.pp("attentions").pp(0))?,
            up_blocks,
            conv_norm_out: GroupNorm::new(narrowest, groups, FRAME_EPSILON, decoder.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(narrowest, config.out_channels, 3, decoder.pp("conv_out"))?,
        })
    }

    /// (1, z, h, w) -> (1, 3, its height, its width)
    fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.forward(&self.post_quant_conv.forward(z)?)?;
        let x = self.attention.forward(&self.resnets[0].forward(&x)?)?;
        let mut x = self.resnets[1].forward(&x)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                x = resnet.forward(&x)?;
            }
            if let Some(conv) = upsampler {
                x = conv.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x, Activation::Silu)?)
    }
}

/// A residual block in a frame.
struct FrameBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl FrameBlock {
    fn new(inputs: usize, outputs: usize, groups: usize, w: Weights) -> Result<Self> {
        let shortcut = (inputs != outputs).then(|| Conv2d::new(inputs, outputs, 1, w.pp("conv_shortcut")));
        Ok(FrameBlock {
            norm1: GroupNorm::new(inputs, groups, FRAME_EPSILON, w.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, 3, w.pp("conv1"))?,
            norm2: GroupNorm::new(outputs, groups, FRAME_EPSILON, w.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, 3, w.pp("conv2"))?,
            conv_shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward(x, Activation::Silu)?)?;
        h = self.norm2.forward(&h, Activation::Silu)?;
        match &self.conv_shortcut {
            Some(conv) => self.conv2.forward_onto(&conv.forward(x)?, &h),
            None => self.conv2.forward_onto(x, &h),
        }
    }
}

/// Attention of one head among the pixels of a frame.
struct FrameAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl FrameAttention {
    fn new(dim: usize, groups: usize, w: Weights) -> Result<Self> {
        Ok(FrameAttention {
            group_norm: GroupNorm::new(dim, groups, FRAME_EPSILON, w.pp("group_norm"))?,
            to_q: Linear::new(dim, dim, w.pp("to_q"))?,
            to_k: Linear::new(dim, dim, w.pp("to_k"))?,
            to_v: Linear::new(dim, dim, w.pp("to_v"))?,
            to_out: Linear::new(dim, dim, w.pp("to_out").pp(0))?,
        })
    }

    /// (1, dim, h, w) -> (1, dim, h, w)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, dim, height, width) = x.dims4()?;
        let pixels =
            self.group_norm.forward(x, Activation::None)?.permute((0, 2, 3, 1))?.reshape((height * width, dim))?;
        let [q, k, v] =
            [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(&pixels)?.unsqueeze(0).map_err(Error::from));
        let mixed = attention(&q?, &k?, &v?, 1.0 / (dim as f64).sqrt(), None, Precision::F32)?; // (pixels, dim)
        let out = self.to_out.forward(&mixed)?.reshape((1, height, width, dim))?.permute((0, 3, 1, 2))?;
        Ok((x + out)?)
    }
}

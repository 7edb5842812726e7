//! The encoder.
//!
//! Frames go in as the decoder hands them out: the first alone, then as many as time is shortened by. Every convolution
//! over time remembers what it needs, so that the result is that of the whole clip.

use candle_core::Tensor;

use super::blocks::{ChannelNorm, Chunk, MidBlock, Resnet, ResnetState};
use super::statistic;
use crate::nn::{CausalConv3d, Conv2d, ConvState, Resize};
use crate::wan::VaeConfig;
use crate::{Error, Result, Weights};

/// The encoder, and the statistics of the latents it was trained with.
pub struct VaeEncoder {
    latents_mean: Tensor, // (1, z, 1, 1, 1)
    latents_std: Tensor,  // (1, z, 1, 1, 1)
    conv_in: CausalConv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    norm_out: ChannelNorm,
    conv_out: CausalConv3d,
    quant_conv: CausalConv3d,
    z_dim: usize,
    patch: usize,
    temporal_factor: usize,
    pub(super) config: VaeConfig,
}

impl VaeEncoder {
    /// Reads the encoder's weights of `AutoencoderKLWan`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let widths: Vec<usize> = config.dim_mult.iter().map(|factor| factor * config.base_dim).collect();
        let widest = widths.last().copied().unwrap_or(config.base_dim);
        let (encoder, z_dim, patch) = (w.pp("encoder"), config.z_dim, config.patch());
        let mut down_blocks = Vec::new();
        let mut inputs = config.base_dim;
        // Wan2.1 numbers residual blocks and downsamplers in one row, Wan2.2 has them by level.
        let mut index = 0;
        for (level, &dim) in widths.iter().enumerate() {
            let halves = config.temperal_downsample.get(level);
            let halves = halves.map(|&time| if time { Halves::SpaceAndTime } else { Halves::Space });
            let blocks = encoder.pp("down_blocks");
            down_blocks.push(if config.is_residual {
                DownBlock::with_shortcut(inputs, dim, config.num_res_blocks, halves, blocks.pp(level))?
            } else {
                DownBlock::new(inputs, dim, config.num_res_blocks, halves, &mut index, blocks)?
            });
            inputs = dim;
        }
        Ok(VaeEncoder {
            latents_mean: statistic(&config.latents_mean, w.device())?,
            latents_std: statistic(&config.latents_std, w.device())?,
            conv_in: CausalConv3d::new(config.out_channels, config.base_dim, 3, 3, encoder.pp("conv_in"))?,
            down_blocks,
            mid_block: MidBlock::new(widest, encoder.pp("mid_block"))?,
            norm_out: ChannelNorm::of_clips(widest, encoder.pp("norm_out"))?,
            conv_out: CausalConv3d::new(widest, 2 * z_dim, 3, 3, encoder.pp("conv_out"))?,
            quant_conv: CausalConv3d::new(2 * z_dim, 2 * z_dim, 1, 1, w.pp("quant_conv"))?,
            z_dim,
            patch,
            temporal_factor: config.scale_factor_temporal(),
            config: config.clone(),
        })
    }

    /// Starts to encode a clip.
    pub fn encoder(&self) -> Encoding<'_> {
        Encoding { lower: self.lower_encoder(), upper: self.upper_encoder() }
    }

    /// Starts the layers above the latents' size, on a clip or on a window of it.
    pub fn lower_encoder(&self) -> LowerEncoding<'_> {
        let down_blocks = self.down_blocks.iter().map(DownState::new).collect();
        LowerEncoding { vae: self, conv_in: ConvState::default(), down_blocks, is_first: true }
    }

    /// Starts the layers at the latents' size, on the features of whole frames.
    pub fn upper_encoder(&self) -> UpperEncoding<'_> {
        UpperEncoding { vae: self, mid_block: Default::default(), conv_out: ConvState::default() }
    }

    /// Frames that a latent frame after the first stands for.
    pub fn temporal_factor(&self) -> usize {
        self.temporal_factor
    }
}

/// A clip that is being encoded.
pub struct Encoding<'a> {
    lower: LowerEncoding<'a>,
    upper: UpperEncoding<'a>,
}

impl Encoding<'_> {
    /// The next latent frame, of about unit variance as the sampler has it: the mean of the encoder's distribution.
    ///
    /// * `frames` - (frames, 3, height, width) in [-1, 1]; one at first, then as many as a latent frame stands for
    ///
    /// Returns (1, z, 1, latent height, latent width).
    pub fn next_latent(&mut self, frames: &Tensor) -> Result<Tensor> {
        self.upper.next_latent(&self.lower.next_features(frames)?)
    }
}

/// The layers above the latents' size, on their way through a clip: convolutions, which see a few pixels around.
pub struct LowerEncoding<'a> {
    vae: &'a VaeEncoder,
    conv_in: ConvState,
    down_blocks: Vec<DownState>,
    is_first: bool,
}

impl LowerEncoding<'_> {
    /// The features of the next latent frame.
    /// // (frames, 3, height, width) -> (1, channels, latent height, latent width)
    pub fn next_features(&mut self, frames: &Tensor) -> Result<Tensor> {
        let vae = self.vae;
        let wanted = if self.is_first { 1 } else { vae.temporal_factor };
        let (found, _, height, width) = frames.dims4()?;
        let spatial = vae.patch << (vae.down_blocks.len() - 1);
        if found != wanted || height % spatial != 0 || width % spatial != 0 {
            return Err(Error::Input {
                what: "frames to encode",
                expected: format!("{wanted} of a size divisible by {spatial}"),
                found: format!("{found} of {width}x{height}"),
            });
        }
        let chunk = if self.is_first { Chunk::First } else { Chunk::Later };
        self.is_first = false;
        let mut x = vae.conv_in.forward(&patches(frames, vae.patch)?, &mut self.conv_in)?;
        for (block, state) in vae.down_blocks.iter().zip(&mut self.down_blocks) {
            x = block.forward(&x, chunk, state)?;
        }
        Ok(x)
    }
}

/// The layers at the latents' size, on their way through a clip, with the attention that sees the whole frame.
pub struct UpperEncoding<'a> {
    vae: &'a VaeEncoder,
    mid_block: [ResnetState; 2],
    conv_out: ConvState,
}

impl UpperEncoding<'_> {
    /// The next latent frame, as [`Encoding::next_latent`] has it. // (1, channels, h, w) -> (1, z, 1, h, w)
    pub fn next_latent(&mut self, features: &Tensor) -> Result<Tensor> {
        let vae = self.vae;
        let x = vae.mid_block.forward(features, &mut self.mid_block)?;
        let x = vae.conv_out.forward(&vae.norm_out.silu(&x)?, &mut self.conv_out)?;
        let moments = vae.quant_conv.clip(&x)?; // (1, 2 z, h, w)
        let mean = moments.narrow(1, 0, vae.z_dim)?.unsqueeze(2)?; // (1, z, 1, h, w)
        Ok(mean.broadcast_sub(&vae.latents_mean)?.broadcast_div(&vae.latents_std)?)
    }
}

/// A patch's pixels as channels: (f, 3, h * patch, w * patch) -> (f, 3 * patch * patch, h, w).
fn patches(x: &Tensor, patch: usize) -> Result<Tensor> {
    let (frames, colors, height, width) = x.dims4()?;
    let (h, w) = (height / patch, width / patch);
    let x = x.reshape((frames, colors, h, patch, w, patch))?;
    Ok(x.permute((0, 1, 5, 3, 2, 4))?.reshape((frames, colors * patch * patch, h, w))?) // columns before rows
}

struct DownBlock {
    resnets: Vec<Resnet>,
    downsampler: Option<Downsampler>,
    shortcut: Option<Shortcut>,
}

struct DownState {
    resnets: Vec<ResnetState>,
    last_frame: Option<Tensor>,
}

impl DownState {
    fn new(block: &DownBlock) -> Self {
        DownState { resnets: block.resnets.iter().map(|_| ResnetState::default()).collect(), last_frame: None }
    }
}

impl DownBlock {
    /// Wan2.1: `index` counts residual blocks and downsamplers through all levels.
    fn new(
        inputs: usize,
        dim: usize,
        resnets: usize,
        halves: Option<Halves>,
        index: &mut usize,
        w: Weights,
    ) -> Result<Self> {
        let mut next = || {
            *index += 1;
            w.pp(*index - 1)
        };
        let resnet = |i: usize, w: Weights| Resnet::new(if i == 0 { inputs } else { dim }, dim, w);
        let resnets = (0..resnets).map(|i| resnet(i, next())).collect::<Result<_>>()?;
        let downsampler = halves.map(|halves| Downsampler::new(dim, halves, next())).transpose()?;
        Ok(DownBlock { resnets, downsampler, shortcut: None })
    }

    /// Wan2.2: means of the level's input are added to its output.
    fn with_shortcut(inputs: usize, dim: usize, resnets: usize, halves: Option<Halves>, w: Weights) -> Result<Self> {
        let downsampler = halves.map(|halves| Downsampler::new(dim, halves, w.pp("downsampler"))).transpose()?;
        let resnets = Resnet::row(inputs, dim, resnets, &w)?;
        Ok(DownBlock { resnets, downsampler, shortcut: Some(Shortcut::new(inputs, dim, halves)?) })
    }

    fn forward(&self, input: &Tensor, chunk: Chunk, state: &mut DownState) -> Result<Tensor> {
        let mut x = input.clone();
        for (resnet, state) in self.resnets.iter().zip(&mut state.resnets) {
            x = resnet.forward(&x, state)?;
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x, chunk, &mut state.last_frame)?;
        }
        if let Some(shortcut) = &self.shortcut {
            x = (x + shortcut.forward(input)?)?;
        }
        Ok(x)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halves {
    Space,
    SpaceAndTime,
}

/// Half the height and width, and in some levels half the frame rate.
struct Downsampler {
    conv: Conv2d,
    time_conv: Option<TimeConv>,
}

impl Downsampler {
    fn new(dim: usize, halves: Halves, w: Weights) -> Result<Self> {
        let time_conv = || TimeConv::new(dim, w.pp("time_conv"));
        Ok(Downsampler {
            conv: Conv2d::resizing(dim, dim, 3, Resize::Halved, w.pp("resample").pp(1))?,
            time_conv: (halves == Halves::SpaceAndTime).then(time_conv).transpose()?,
        })
    }

    /// The first chunk's frame goes past `time_conv`, which only remembers it.
    fn forward(&self, x: &Tensor, chunk: Chunk, last_frame: &mut Option<Tensor>) -> Result<Tensor> {
        let x = self.conv.forward(x)?;
        let Some(time_conv) = &self.time_conv else { return Ok(x) };
        let before = last_frame.replace(x.get(x.dim(0)? - 1)?);
        match (chunk, before) {
            (Chunk::Later, Some(before)) => time_conv.forward(&before, &x),
            _ => Ok(x),
        }
    }
}

/// Three frames to one, every second frame.
struct TimeConv {
    matrix: Tensor, // (dim, 3 * dim)
    bias: Tensor,   // (dim, 1)
}

impl TimeConv {
    fn new(dim: usize, w: Weights) -> Result<Self> {
        let weight = w.f32("weight", &[dim, dim, 3, 1, 1])?.reshape((dim, dim, 3))?;
        Ok(TimeConv {
            matrix: weight.transpose(1, 2)?.reshape((dim, 3 * dim))?,
            bias: w.f32("bias", &[dim])?.reshape((dim, 1))?,
        })
    }

    /// `before` (dim, h, w) is the frame before those of `x`, (frames, dim, h, w) -> (frames / 2, dim, h, w).
    fn forward(&self, before: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (frames, dim, h, w) = x.dims4()?;
        let all = Tensor::cat(&[&before.unsqueeze(0)?, x], 0)?.reshape(((frames + 1) * dim, h * w))?;
        let outputs = (0..frames / 2).map(|i| {
            let three = all.narrow(0, 2 * i * dim, 3 * dim)?;
            Ok(self.matrix.matmul(&three)?.broadcast_add(&self.bias)?.reshape((dim, h, w))?)
        });
        Ok(Tensor::stack(&outputs.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// The input of a level at the size of its output: frames and pixels become channels, of which groups are averaged.
struct Shortcut {
    outputs: usize,
    group: usize,
    time: usize,
    space: usize,
}

impl Shortcut {
    fn new(inputs: usize, outputs: usize, halves: Option<Halves>) -> Result<Self> {
        let (time, space) = match halves {
            None => (1, 1),
            Some(Halves::Space) => (1, 2),
            Some(Halves::SpaceAndTime) => (2, 2),
        };
        let gathered = inputs * time * space * space;
        if !gathered.is_multiple_of(outputs) {
            return Err(Error::Config {
                place: "vae/config.json",
                field: "dim_mult",
                found: format!("a level from {inputs} to {outputs} channels"),
                expected: format!("a divisor of {gathered} to go to"),
            });
        }
        Ok(Shortcut { outputs, group: gathered / outputs, time, space })
    }

    /// A lone first frame has a frame of zeros before it.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let missing = (self.time - x.dim(0)? % self.time) % self.time;
        let x = x.pad_with_zeros(0, missing, 0)?;
        let (frames, dim, height, width) = x.dims4()?;
        let (f, h, w) = (frames / self.time, height / self.space, width / self.space);
        let x = x.reshape(&[f, self.time, dim, h, self.space, w, self.space][..])?;
        let x = x.permute(vec![0, 2, 1, 4, 6, 3, 5])?.reshape((f, self.outputs, self.group, h, w))?;
        Ok(x.mean(2)?)
    }
}

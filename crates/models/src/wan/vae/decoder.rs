//! The decoder.
//!
//! Latent frames go in one by one and frames come out as they are ready: one for the first, then as many as time was
//! shortened by. Every convolution over time remembers what it needs of the frames before, so the result is that of the
//! whole clip and memory does not grow with its length.

use std::sync::Arc;

use candle_core::Tensor;

use super::blocks::{ChannelNorm, Chunk, MidBlock, Resnet, ResnetState};
use super::statistic;
use crate::nn::{CausalConv3d, Conv2d, ConvState, Resize};
use crate::tiling::Window;
use crate::wan::VaeConfig;
use crate::{Error, Result, Weights};

/// The decoder, and the statistics of the latents it was trained with.
pub struct Vae {
    latents_mean: Tensor, // (1, z, 1, 1, 1)
    latents_std: Tensor,  // (1, z, 1, 1, 1)
    post_quant_conv: CausalConv3d,
    conv_in: CausalConv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: ChannelNorm,
    conv_out: CausalConv3d,
    patch: usize,
    pub(super) config: VaeConfig,
}

impl Vae {
    /// Reads the decoder's weights of `AutoencoderKLWan`, as f32.
    pub fn new(config: &VaeConfig, w: Weights) -> Result<Self> {
        config.check()?;
        let base = config.decoder_base_dim.unwrap_or(config.base_dim);
        let widest = config.dim_mult.last().copied().unwrap_or(1) * base;
        let outputs: Vec<usize> = config.dim_mult.iter().rev().map(|factor| factor * base).collect();
        let doubles_time: Vec<bool> = config.temperal_downsample.iter().rev().copied().collect();

        let decoder = w.pp("decoder");
        let mut up_blocks = Vec::new();
        let mut inputs = widest;
        for (i, &dim) in outputs.iter().enumerate() {
            let doubles = doubles_time.get(i).map(|&time| if time { Doubles::SpaceAndTime } else { Doubles::Space });
            let w = decoder.pp("up_blocks").pp(i);
            up_blocks.push(match config.is_residual {
                false => UpBlock::new(inputs, dim, config.num_res_blocks + 1, doubles, w)?,
                true => UpBlock::with_shortcut(inputs, dim, config.num_res_blocks + 1, doubles, w)?,
            });
            inputs = if config.is_residual { dim } else { dim / 2 };
        }
        let dim = outputs.last().copied().unwrap_or(base);
        Ok(Vae {
            latents_mean: statistic(&config.latents_mean, w.device())?,
            latents_std: statistic(&config.latents_std, w.device())?,
            post_quant_conv: CausalConv3d::new(config.z_dim, config.z_dim, 1, 1, w.pp("post_quant_conv"))?,
            conv_in: CausalConv3d::new(config.z_dim, widest, 3, 3, decoder.pp("conv_in"))?,
            mid_block: MidBlock::new(widest, decoder.pp("mid_block"))?,
            up_blocks,
            norm_out: ChannelNorm::of_clips(dim, decoder.pp("norm_out"))?,
            conv_out: CausalConv3d::new(dim, config.out_channels, 3, 3, decoder.pp("conv_out"))?,
            patch: config.patch(),
            config: config.clone(),
        })
    }

    /// From the sampler's latents, of about unit variance, to the decoder's. // (1, z, f, h, w)
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.broadcast_mul(&self.latents_std)?.broadcast_add(&self.latents_mean)?)
    }

    /// Starts to decode latents, (1, z, latent frames, height, width), f32.
    pub fn decoder(&self, latents: &Tensor) -> Result<Decoding<'_>> {
        let input = Input::Latents(self.trunk(latents)?);
        Ok(Decoding { vae: self, input, next: 0, state: UpperState::new(self) })
    }

    /// The features of whole frames, from which windows of them are decoded: everything at the size of the latents.
    /// // (1, channels, h, w) for each latent frame
    pub fn features(&self, latents: &Tensor) -> Result<Vec<Tensor>> {
        let mut trunk = self.trunk(latents)?;
        (0..trunk.frames).map(|frame| trunk.run(self, frame)).collect()
    }

    /// Starts to decode a window of frames whose features are known.
    pub fn window_decoder(&self, features: Arc<Vec<Tensor>>, window: Window) -> Decoding<'_> {
        Decoding { vae: self, input: Input::Window(features, window), next: 0, state: UpperState::new(self) }
    }

    fn trunk(&self, latents: &Tensor) -> Result<Trunk> {
        let (_, channels, frames, _, _) = latents.dims5()?;
        let z_dim = self.latents_mean.dim(1)?;
        if channels != z_dim {
            return Err(Error::Input {
                what: "channels of the latents",
                expected: format!("{z_dim} (z_dim of vae/config.json)"),
                found: format!("{channels} (in_channels of transformer/config.json)"),
            });
        }
        let latents = latents.squeeze(0)?.transpose(0, 1)?; // (f, z, h, w)
        Ok(Trunk { latents, frames, conv_in: ConvState::default(), mid_block: Default::default() })
    }
}

/// The layers at the size of the latents, on their way through a clip.
struct Trunk {
    latents: Tensor, // (latent frames, z, h, w)
    frames: usize,
    conv_in: ConvState,
    mid_block: [ResnetState; 2],
}

impl Trunk {
    /// The next latent frame. // (1, channels, h, w)
    fn run(&mut self, vae: &Vae, frame: usize) -> Result<Tensor> {
        let z = self.latents.narrow(0, frame, 1)?;
        let x = vae.post_quant_conv.clip(&z)?;
        let x = vae.conv_in.forward(&x, &mut self.conv_in)?;
        vae.mid_block.forward(&x, &mut self.mid_block)
    }
}

/// A clip, or a window of it, that is being decoded.
pub struct Decoding<'a> {
    vae: &'a Vae,
    input: Input,
    next: usize,
    state: UpperState,
}

enum Input {
    Latents(Trunk),
    Window(Arc<Vec<Tensor>>, Window),
}

/// What every convolution over time above the latents' size remembers.
struct UpperState {
    up_blocks: Vec<UpState>,
    conv_out: ConvState,
}

impl UpperState {
    fn new(vae: &Vae) -> Self {
        UpperState { up_blocks: vae.up_blocks.iter().map(UpState::new).collect(), conv_out: ConvState::default() }
    }
}

impl Decoding<'_> {
    /// The next frames, in [-1, 1], or `None` after the last. // (frames, 3, height, width)
    pub fn next_chunk(&mut self) -> Result<Option<Tensor>> {
        let (vae, frame) = (self.vae, self.next);
        let mut x = match &mut self.input {
            Input::Latents(trunk) if frame < trunk.frames => trunk.run(vae, frame)?,
            Input::Window(features, Window { rows, columns }) if frame < features.len() => {
                let rows = features[frame].narrow(2, rows.start, rows.len())?;
                rows.narrow(3, columns.start, columns.len())?.contiguous()?
            }
            _ => return Ok(None),
        };
        self.next += 1;
        let chunk = if frame == 0 { Chunk::First } else { Chunk::Later };
        for (block, state) in vae.up_blocks.iter().zip(&mut self.state.up_blocks) {
            x = block.forward(&x, chunk, state)?;
        }
        let x = vae.conv_out.forward(&vae.norm_out.silu(&x)?, &mut self.state.conv_out)?;
        Ok(Some(pixels(&x, vae.patch)?.clamp(-1.0, 1.0)?))
    }
}

/// Spreads every patch's channels over its pixels: (f, 3 * patch * patch, h, w) -> (f, 3, h * patch, w * patch).
fn pixels(x: &Tensor, patch: usize) -> Result<Tensor> {
    let (frames, channels, h, w) = x.dims4()?;
    let colors = channels / (patch * patch);
    let x = x.reshape((frames, colors, patch, patch, h, w))?; // columns of a patch before its rows
    Ok(x.permute((0, 1, 4, 3, 5, 2))?.reshape((frames, colors, h * patch, w * patch))?)
}

struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<Upsampler>,
    shortcut: Option<Shortcut>,
}

struct UpState {
    resnets: Vec<ResnetState>,
    time_conv: ConvState,
}

impl UpState {
    fn new(block: &UpBlock) -> Self {
        UpState {
            resnets: block.resnets.iter().map(|_| ResnetState::default()).collect(),
            time_conv: ConvState::default(),
        }
    }
}

impl UpBlock {
    /// Wan2.1: the upsampler halves the width.
    fn new(inputs: usize, dim: usize, resnets: usize, doubles: Option<Doubles>, w: Weights) -> Result<Self> {
        let upsampler = doubles.map(|doubles| Upsampler::new(dim, dim / 2, doubles, w.pp("upsamplers").pp(0)));
        Ok(UpBlock {
            resnets: Resnet::row(inputs, dim, resnets, &w)?,
            upsampler: upsampler.transpose()?,
            shortcut: None,
        })
    }

    /// Wan2.2: the upsampler keeps the width, and the block's input is added to its output.
    fn with_shortcut(inputs: usize, dim: usize, resnets: usize, doubles: Option<Doubles>, w: Weights) -> Result<Self> {
        let upsampler = doubles.map(|doubles| Upsampler::new(dim, dim, doubles, w.pp("upsampler")));
        let shortcut = doubles.map(|doubles| Shortcut::new(inputs, dim, doubles));
        Ok(UpBlock {
            resnets: Resnet::row(inputs, dim, resnets, &w)?,
            upsampler: upsampler.transpose()?,
            shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, input: &Tensor, chunk: Chunk, state: &mut UpState) -> Result<Tensor> {
        let mut x = input.clone();
        for (resnet, state) in self.resnets.iter().zip(&mut state.resnets) {
            x = resnet.forward(&x, state)?;
        }
        if let Some(upsampler) = &self.upsampler {
            x = upsampler.forward(&x, chunk, &mut state.time_conv)?;
        }
        if let Some(shortcut) = &self.shortcut {
            x = (x + shortcut.forward(input, chunk)?)?;
        }
        Ok(x)
    }
}

/// The input of a level at the size of its output: channels are repeated, then spread over frames and pixels.
struct Shortcut {
    outputs: usize,
    repeats: usize,
    time: usize,
}

impl Shortcut {
    fn new(inputs: usize, outputs: usize, doubles: Doubles) -> Result<Self> {
        let time = if doubles == Doubles::SpaceAndTime { 2 } else { 1 };
        let spread = outputs * time * 4;
        if !spread.is_multiple_of(inputs) {
            return Err(Error::Config {
                place: "vae/config.json",
                field: "dim_mult",
                found: format!("a level from {inputs} to {outputs} channels"),
                expected: format!("a divisor of {spread} to come from"),
            });
        }
        Ok(Shortcut { outputs, repeats: spread / inputs, time })
    }

    fn forward(&self, x: &Tensor, chunk: Chunk) -> Result<Tensor> {
        let (frames, inputs, h, w) = x.dims4()?;
        let (outputs, time) = (self.outputs, self.time);
        let x = x.unsqueeze(2)?.broadcast_as((frames, inputs, self.repeats, h, w))?;
        let x = x.reshape(&[frames, outputs, time, 2, 2, h, w][..])?;
        let x = x.permute(vec![0, 2, 1, 5, 3, 6, 4])?.reshape((frames * time, outputs, 2 * h, 2 * w))?;
        Ok(match chunk {
            Chunk::First => x.narrow(0, time - 1, 1)?,
            Chunk::Later => x,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubles {
    Space,
    SpaceAndTime,
}

/// Twice the height and width, and in some levels the frame rate.
struct Upsampler {
    time_conv: Option<CausalConv3d>,
    conv: Conv2d,
}

impl Upsampler {
    fn new(inputs: usize, outputs: usize, doubles: Doubles, w: Weights) -> Result<Self> {
        let time_conv = || CausalConv3d::new(inputs, 2 * inputs, 3, 1, w.pp("time_conv"));
        Ok(Upsampler {
            time_conv: (doubles == Doubles::SpaceAndTime).then(time_conv).transpose()?,
            conv: Conv2d::resizing(inputs, outputs, 3, Resize::Doubled, w.pp("resample").pp(1))?,
        })
    }

    /// For the first chunk `time_conv` does not run, nor does it hear of it.
    fn forward(&self, x: &Tensor, chunk: Chunk, state: &mut ConvState) -> Result<Tensor> {
        let (frames, dim, h, w) = x.dims4()?;
        let doubled = match &self.time_conv {
            // Its output holds the channels of two frames.
            Some(conv) if chunk == Chunk::Later => Some(conv.forward(x, state)?.reshape((2 * frames, dim, h, w))?),
            _ => None,
        };
        let x = doubled.as_ref().unwrap_or(x);
        self.conv.forward(x)
    }
}

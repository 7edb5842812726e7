//! Root-mean-square norm over the channels of pictures, with SiLU on the way if asked.
//!
//! The channels of a pixel are a plane apart. A block of pixels is read once, channel by channel, while their squares
//! add up, and is still in the second cache when it is read again to be scaled.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::level::{Kernel, Level};
use crate::simd::Simd;
use crate::storage::{in_memory, with_numbers};

/// Numbers in a block: they fit into the second cache.
const BLOCK: usize = 1 << 16;
/// The fewest pixels in a block: shorter runs of memory are slow to read.
const PIXELS: usize = 64;
/// What a pixel is at least taken to be long.
const SHORTEST: f32 = 1e-12;

/// `x / max(|x|, 1e-12) * sqrt(channels) * scale`, with the norm |x| of each pixel's channels, (frames, channels, h, w)
/// -> the same.
///
/// * `scale` - (channels)
pub fn channel_rms_norm(x: &Tensor, scale: &Tensor, activation: Activation) -> Result<Tensor> {
    let (frames, channels, h, w) = x.dims4()?;
    if scale.dims() != [channels] {
        bail!("channel norm: {channels} channels, scale {:?}", scale.dims());
    }
    if !in_memory(&[x, scale]) {
        let norm = x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(f64::from(SHORTEST))?;
        let x = (x.broadcast_div(&norm)? * (channels as f64).sqrt())?;
        return activation.apply(&x.broadcast_mul(&scale.reshape((channels, 1, 1))?)?);
    }
    let (level, pixels) = (Level::current(), h * w);
    let mut y = vec![0.0; x.elem_count()];
    if y.is_empty() {
        return Ok(x.clone());
    }
    let block = (BLOCK / channels).next_multiple_of(PIXELS);
    with_numbers(&[&x.contiguous()?, &scale.contiguous()?], |[x, scale]| {
        // What is written by whom: for each block, its pixels of every channel.
        let mut blocks: Vec<Vec<&mut [f32]>> = (0..frames * pixels.div_ceil(block)).map(|_| Vec::new()).collect();
        for (plane, y) in y.chunks_exact_mut(pixels).enumerate() {
            let first = plane / channels * pixels.div_ceil(block);
            y.chunks_mut(block).zip(&mut blocks[first..]).for_each(|(y, block)| block.push(y));
        }
        blocks.into_par_iter().enumerate().for_each(|(i, mut y)| {
            let (frame, first) = (i / pixels.div_ceil(block), i % pixels.div_ceil(block) * block);
            let x = &x[frame * channels * pixels..][..channels * pixels];
            level.run(Block { x, pixels, first, scale, activation, y: &mut y });
        });
    })?;
    Tensor::from_vec(y, (frames, channels, h, w), &Device::Cpu)
}

/// Some pixels of a frame.
struct Block<'a, 'y> {
    x: &'a [f32], // (channels, pixels)
    pixels: usize,
    first: usize,
    scale: &'a [f32],
    activation: Activation,
    y: &'a mut [&'y mut [f32]], // (channels, some pixels)
}

impl Kernel for Block<'_, '_> {
    type Output = ();

    fn plain(self) {
        let Block { x, pixels, first, scale, activation, y } = self;
        for i in 0..y[0].len() {
            let at = |channel: usize| x[channel * pixels + first + i];
            let square: f64 = (0..scale.len()).map(|channel| f64::from(at(channel)).powi(2)).sum();
            let factor = (scale.len() as f64).sqrt() / square.sqrt().max(f64::from(SHORTEST));
            for (channel, (y, scale)) in y.iter_mut().zip(scale).enumerate() {
                y[i] = activation.plain((f64::from(at(channel)) * factor) as f32 * scale);
            }
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let Block { x, pixels, first, scale, activation, y } = self;
        let len = y[0].len();
        let mut factors = vec![0.0; len];
        for plane in x.chunks_exact(pixels) {
            for (factor, x) in factors.chunks_mut(S::LANES).zip(plane[first..first + len].chunks(S::LANES)) {
                let x = simd.load_part(x, 0.0);
                simd.store_part(simd.fma(x, x, simd.load_part(factor, 0.0)), factor);
            }
        }
        let root = (scale.len() as f32).sqrt();
        for factor in &mut factors {
            *factor = root / factor.sqrt().max(SHORTEST);
        }
        for ((plane, scale), y) in x.chunks_exact(pixels).zip(scale).zip(y) {
            let (scale, row) = (simd.splat(*scale), &plane[first..first + len]);
            for ((y, x), factor) in y.chunks_mut(S::LANES).zip(row.chunks(S::LANES)).zip(factors.chunks(S::LANES)) {
                let v = simd.mul(simd.mul(simd.load_part(x, 0.0), simd.load_part(factor, 0.0)), scale);
                simd.store_part(activation.fast(simd, v), y);
            }
        }
    }
}

//! Norm of groups of channels over all frames and pixels of a clip (Wu and He 2018, arXiv 1803.08494), with SiLU on the
//! way if asked.
//!
//! Mean and variance of pieces that fit into a core's cache are put together as Chan, Golub and LeVeque do (1983), so
//! that large groups lose no digits; a second reading scales.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::level::{Kernel, Level};
use crate::norm::moments;
use crate::parallel::by_rows;
use crate::simd::Simd;
use crate::storage::{in_memory, with_numbers};

/// Numbers in a piece.
const PIECE: usize = 1 << 14;

/// `(x - mean) / sqrt(variance + epsilon) * scale + shift` with mean and variance of each group, (frames, channels, h,
/// w) -> the same.
///
/// * `scale`, `shift` - (channels)
/// * `groups` - how many; neighbouring channels are in one
pub fn group_norm(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (frames, channels, h, w) = x.dims4()?;
    if groups == 0 || channels % groups > 0 || scale.dims() != [channels] || shift.dims() != [channels] {
        bail!("group norm: {channels} channels, {groups} groups, {:?} and {:?}", scale.dims(), shift.dims());
    }
    if !in_memory(&[x, scale, shift]) {
        let grouped = x.reshape((frames, groups, channels / groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim((0, 2))?)?;
        let variance = (centred.sqr()?.mean_keepdim((0, 2))? + epsilon)?;
        let x = centred.broadcast_div(&variance.sqrt()?)?.reshape((frames, channels, h, w))?;
        let x = x.broadcast_mul(&scale.reshape((channels, 1, 1))?)?;
        return activation.apply(&x.broadcast_add(&shift.reshape((channels, 1, 1))?)?);
    }
    let (level, pixels) = (Level::current(), h * w);
    let mut y = vec![0.0; x.elem_count()];
    with_numbers(&[&x.contiguous()?, &scale.contiguous()?, &shift.contiguous()?], |[x, scale, shift]| {
        let slab = channels / groups * pixels;
        let statistics: Vec<[f32; 2]> = (0..groups)
            .map(|group| {
                let slabs = x.chunks_exact(slab.max(1)).skip(group).step_by(groups);
                let pieces: Vec<&[f32]> = slabs.flat_map(|slab| slab.chunks(PIECE)).collect();
                let pieces: Vec<Moments> = pieces.into_par_iter().map(|x| level.run(Piece { x })).collect();
                let all = pieces.into_iter().fold(Moments::default(), Moments::and);
                [all.mean as f32, (1.0 / (all.squares / all.count + epsilon).sqrt()) as f32]
            })
            .collect();
        by_rows(&mut y, pixels, |first, y| {
            for (plane, y) in (first..).zip(y.chunks_exact_mut(pixels)) {
                let channel = plane % channels;
                let [mean, factor] = statistics[channel / (channels / groups)];
                let x = &x[plane * pixels..][..pixels];
                level.run(Plane { x, mean, scale: factor * scale[channel], shift: shift[channel], activation, y });
            }
        });
    })?;
    Tensor::from_vec(y, (frames, channels, h, w), &Device::Cpu)
}

/// Of some numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    /// Sum of squares of what differs from the mean.
    squares: f64,
}

impl Moments {
    /// Those of both together.
    fn and(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + apart * other.count / count,
            squares: self.squares + other.squares + apart * apart * self.count * other.count / count,
        }
    }
}

struct Piece<'a> {
    x: &'a [f32],
}

impl Kernel for Piece<'_> {
    type Output = Moments;

    fn plain(self) -> Moments {
        let count = self.x.len() as f64;
        let mean = self.x.iter().copied().map(f64::from).sum::<f64>() / count;
        Moments { count, mean, squares: self.x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum() }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) -> Moments {
        let count = self.x.len() as f64;
        let rough = moments(simd, self.x, 0.0)[0] / count as f32;
        let [rest, squares] = moments(simd, self.x, rough);
        let rest = f64::from(rest) / count;
        Moments { count, mean: f64::from(rough) + rest, squares: (f64::from(squares) - rest * rest * count).max(0.0) }
    }
}

/// A channel of a frame: `(x - mean) * scale + shift`.
struct Plane<'a> {
    x: &'a [f32],
    mean: f32,
    scale: f32,
    shift: f32,
    activation: Activation,
    y: &'a mut [f32],
}

impl Kernel for Plane<'_> {
    type Output = ();

    fn plain(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = self.activation.plain((x - self.mean) * self.scale + self.shift);
        }
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let (mean, scale, shift) = (simd.splat(self.mean), simd.splat(self.scale), simd.splat(self.shift));
        for (y, x) in self.y.chunks_mut(S::LANES).zip(self.x.chunks(S::LANES)) {
            let v = simd.fma(simd.sub(simd.load_part(x, 0.0), mean), scale, shift);
            simd.store_part(self.activation.fast(simd, v), y);
        }
    }
}

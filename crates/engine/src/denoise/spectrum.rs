//! Frequencies of latents and features, by matrices: the sizes are those of a latent frame, a hundred or two a side, so
//! that a product with a matrix of cosines costs less than a transform library would weigh.

use std::f64::consts::TAU;

use candle_core::{Device, Tensor};

use crate::Result;

/// The low spatial frequencies of every frame and channel: those within a disc of radius `min(height, width) / 5`,
/// rounded down, around frequency 0.
///
/// * `x` - (1, channels, frames, height, width)
///
/// Source: FasterCache's split (diffusers 0.42.1 `_split_low_high_freq`), which PreciseCache's is too.
pub(crate) fn low_pass(x: &Tensor) -> Result<Tensor> {
    let shape = x.shape().clone();
    let (_, channels, frames, height, width) = x.dims5()?;
    let radius = (height.min(width) / 5) as i64;
    let maps = x.reshape((channels * frames, height, width))?;
    let device = x.device();
    let rows = Dft::new(height, device)?;
    let columns = Dft::new(width, device)?;
    let mask = Tensor::from_vec(disc(height, width, radius), (1, height, width), device)?;

    // F X F with F = C - iS, the disc, and back with the conjugate; C and S are symmetric.
    let (cx, sx) = (rows.cos(&maps)?, rows.sin(&maps)?);
    let real = (columns.cos_right(&cx)? - columns.sin_right(&sx)?)?.broadcast_mul(&mask)?;
    let imaginary = (columns.sin_right(&cx)? + columns.cos_right(&sx)?)?.broadcast_mul(&mask)?; // its negative
    let (cr, sr) = (rows.cos(&real)?, rows.sin(&real)?);
    let (ci, si) = (rows.cos(&imaginary)?, rows.sin(&imaginary)?);
    let back = ((columns.cos_right(&cr)? - columns.sin_right(&sr)?)?
        + (columns.sin_right(&ci)? + columns.cos_right(&si)?)?)?;
    Ok((back / (height * width) as f64)?.reshape(shape)?)
}

/// 1 where a frequency is in the disc, else 0. // (height, width)
fn disc(height: usize, width: usize, radius: i64) -> Vec<f32> {
    let frequency = |k: usize, n: usize| if k <= n / 2 { k as i64 } else { k as i64 - n as i64 };
    let inside = |y: usize, x: usize| frequency(y, height).pow(2) + frequency(x, width).pow(2) <= radius * radius;
    (0..height * width).map(|i| if inside(i / width, i % width) { 1.0 } else { 0.0 }).collect()
}

/// Cosines and sines of `2 pi j k / n`. // (1, n, n) each
struct Dft {
    cos: Tensor,
    sin: Tensor,
}

impl Dft {
    fn new(n: usize, device: &Device) -> Result<Self> {
        let table = |f: fn(f64) -> f64| {
            let values = (0..n * n).map(|i| f(TAU * ((i / n) * (i % n) % n) as f64 / n as f64) as f32).collect();
            Tensor::from_vec(values, (1, n, n), device)
        };
        Ok(Dft { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    fn cos(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.cos.broadcast_matmul(x)?)
    }

    fn sin(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.sin.broadcast_matmul(x)?)
    }

    fn cos_right(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_matmul(&self.cos)?)
    }

    fn sin_right(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_matmul(&self.sin)?)
    }
}

/// Exponent of the assumed power spectrum of video, `1 / |f|^3`.
const VIDEO_EXPONENT: f64 = 3.0;
const EPSILON: f64 = 1e-16;

/// Features through a Wiener filter along time, height and width: what of each frequency is data, at this noise level.
///
/// With `a = 1 - sigma`, `b = sigma` and `S = 1 / |f|^3`, the gain of an axis is `a S / (a^2 S + b^2)`; the gain of a
/// frequency is the product of its axes', divided by the mean over all. A real, even gain along an axis is a product
/// with a circulant matrix.
///
/// * `features` - (frames x height x width, dim)
///
/// Source: SeaCache (arXiv 2602.18993), `util_seacache.py`.
pub(crate) fn wiener(features: &Tensor, [frames, height, width]: [usize; 3], sigma: f64) -> Result<Tensor> {
    let dim = features.dim(1)?;
    let along = |n: usize| Tensor::from_vec(circulant(n, sigma), (1, n, n), features.device());
    let x = features.reshape((1, frames, height * width * dim))?;
    let x = along(frames)?.matmul(&x)?;
    let x = along(height)?.broadcast_matmul(&x.reshape((frames, height, width * dim))?)?;
    let x = along(width)?.broadcast_matmul(&x.reshape((frames * height, width, dim))?)?;
    Ok(x.reshape((frames * height * width, dim))?)
}

/// The filter along an axis of `n` as a matrix. // (n, n)
fn circulant(n: usize, sigma: f64) -> Vec<f32> {
    let sigma = sigma.clamp(1e-6, 1.0 - 1e-6);
    let (a, b) = (1.0 - sigma, sigma);
    let gain = |k: usize| {
        let f = k.min(n - k) as f64 / n as f64;
        let power = 1.0 / (f.powf(VIDEO_EXPONENT) + EPSILON);
        a * power / (a * a * power + b * b + EPSILON)
    };
    let gains: Vec<f64> = (0..n).map(gain).collect();
    let mean = gains.iter().sum::<f64>() / n as f64;
    let tap = |shift: usize| {
        let cosine = |k: usize| (TAU * (k * shift % n) as f64 / n as f64).cos();
        (0..n).map(|k| gains[k] / mean * cosine(k)).sum::<f64>() / n as f64
    };
    let taps: Vec<f64> = (0..n).map(tap).collect();
    (0..n * n).map(|i| taps[(i / n + n - i % n) % n] as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(height: usize, width: usize, fy: f64, fx: f64) -> Tensor {
        let value = |i: usize| {
            let (y, x) = ((i / width) as f64 / height as f64, (i % width) as f64 / width as f64);
            (TAU * (fy * y + fx * x) + 0.3).cos() as f32
        };
        let values: Vec<f32> = (0..height * width).map(value).collect();
        Tensor::from_vec(values, (1, 1, 1, height, width), &Device::Cpu).unwrap()
    }

    fn largest(t: &Tensor) -> f32 {
        t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn waves_inside_the_disc_pass_and_others_do_not() {
        for (height, width) in [(10, 15), (16, 11)] {
            for (fy, fx, passes) in
                [(0.0, 0.0, true), (1.0, 1.0, true), (0.0, 2.0, true), (2.0, 2.0, false), (0.0, 4.0, false)]
            {
                let x = wave(height, width, fy, fx);
                let inside = f64::hypot(fy, fx) <= (height.min(width) / 5) as f64;
                assert_eq!(inside, passes);
                let low = low_pass(&x).unwrap();
                let rest = if passes { (&low - &x).unwrap() } else { low };
                assert!(largest(&rest) < 1e-4, "{height}x{width} wave {fy} {fx}: {}", largest(&rest));
            }
        }
    }

    #[test]
    fn the_filter_weighs_frequencies_as_wiener_did() {
        // One channel, one row: a wave comes out multiplied by its gain, over the mean of all gains.
        let (n, sigma) = (12, 0.7);
        for f in [0usize, 1, 3, 6] {
            let values: Vec<f32> = (0..n).map(|i| (TAU * (f * i) as f64 / n as f64).cos() as f32).collect();
            let x = Tensor::from_vec(values, (n, 1), &Device::Cpu).unwrap();
            let y = wiener(&x, [1, 1, n], sigma).unwrap();
            let gain = |k: usize| {
                let s = 1.0 / ((k.min(n - k) as f64 / n as f64).powi(3) + 1e-16);
                0.3 * s / (0.09 * s + 0.49 + 1e-16)
            };
            let expected = gain(f) / (0..n).map(gain).sum::<f64>() * n as f64;
            let difference = (y - (x * expected).unwrap()).unwrap();
            assert!(largest(&difference) < 1e-4 * expected as f32, "{f}");
        }
    }
}

//! Learned perceptual image patch similarity, LPIPS (Zhang et al. 2018, arXiv 1801.03924; its version 0.1): how
//! differently two pictures look to AlexNet (Krizhevsky 2014, arXiv 1404.5997), a network that was trained to say what
//! is in a picture.
//!
//! The features after each of the five convolutions, scaled to length 1 at every position, are compared channel by
//! channel; the squared differences are weighted as people's judgements weigh them. Weights have the names of
//! torchvision's AlexNet and of the authors' linear layers.

use candle_core::{D, Tensor};

use crate::{Error, Result, Weights};

/// The convolutions of AlexNet: index among `features`, inputs, outputs, size of the kernel, stride, zeros around the
/// picture.
const CONVOLUTIONS: [(usize, usize, usize, usize, usize, usize); 5] = [
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
];
/// The maximum over 3x3 positions, every second one, comes before these of them.
const POOLED: [usize; 2] = [3, 6];
/// RGB in [-1, 1] less this, by that: what the network was trained on, mean 0 and deviation 1 in each channel.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Added to the length of features, so that features of nothing stay nothing.
const EPSILON: f64 = 1e-10;

/// AlexNet and the weights of its differences.
#[derive(Debug, Clone)]
pub struct Lpips {
    layers: Vec<Layer>,
    shift: Tensor, // (1, 3, 1, 1)
    scale: Tensor, // (1, 3, 1, 1)
}

#[derive(Debug, Clone)]
struct Layer {
    pooled: bool,
    weight: Tensor, // (out, in, size, size)
    bias: Tensor,   // (1, out, 1, 1)
    stride: usize,
    padding: usize,
    lin: Tensor, // (1, out, 1, 1)
}

impl Lpips {
    /// Least width and height of a picture, so that something is left after the second maximum.
    pub const SMALLEST: usize = 31;

    /// Reads `features.0`, `.3`, `.6`, `.8` and `.10` (`weight` and `bias`), and `lin0.model.1.weight` to
    /// `lin4.model.1.weight`.
    pub fn new(w: Weights) -> Result<Self> {
        let layer = |(index, (at, inputs, outputs, size, stride, padding))| -> Result<Layer> {
            let features = w.pp("features").pp(at);
            Ok(Layer {
                pooled: POOLED.contains(&at),
                weight: features.f32("weight", &[outputs, inputs, size, size])?,
                bias: features.f32("bias", &[outputs])?.reshape((1, outputs, 1, 1))?,
                stride,
                padding,
                lin: w.pp(format!("lin{index}.model.1")).f32("weight", &[1, outputs, 1, 1])?,
            })
        };
        Ok(Lpips {
            layers: CONVOLUTIONS.into_iter().enumerate().map(layer).collect::<Result<_>>()?,
            shift: Tensor::new(&SHIFT, w.device())?.reshape((1, 3, 1, 1))?,
            scale: Tensor::new(&SCALE, w.device())?.reshape((1, 3, 1, 1))?,
        })
    }

    /// The distance of each pair of pictures, RGB in [-1, 1]: the mean over the map of distances that the layers' maps
    /// make, each interpolated to the size of the picture (`spatial=True`). // (b, 3, h, w) twice -> (b)
    pub fn forward(&self, reference: &Tensor, picture: &Tensor) -> Result<Tensor> {
        let (pictures, channels, h, w) = reference.dims4()?;
        if reference.dims() != picture.dims() || channels != 3 || h.min(w) < Self::SMALLEST {
            return Err(Error::Input {
                what: "pictures for LPIPS",
                expected: format!("two of (b, 3, h, w), at least {0}x{0}", Self::SMALLEST),
                found: format!("{:?} and {:?}", reference.dims(), picture.dims()),
            });
        }
        let mut x = Tensor::cat(&[reference, picture], 0)?.broadcast_sub(&self.shift)?.broadcast_div(&self.scale)?;
        let mut distance = Tensor::zeros(pictures, x.dtype(), x.device())?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
            let unit = unit(&x)?;
            let difference = (unit.narrow(0, 0, pictures)? - unit.narrow(0, pictures, pictures)?)?.sqr()?;
            let map = difference.broadcast_mul(&layer.lin)?.sum(1)?; // (b, h', w')
            distance = (distance + mean_of_interpolated(&map, h, w)?)?;
        }
        Ok(distance)
    }
}

impl Layer {
    /// (b, in, h, w) -> (b, out, h', w')
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = if self.pooled { &x.max_pool2d_with_stride(3, 2)? } else { x };
        let x = pooled.conv2d(&self.weight, self.padding, self.stride, 1, 1)?;
        Ok(x.broadcast_add(&self.bias)?.relu()?)
    }
}

/// Features of length 1 at every position. // (b, c, h, w)
fn unit(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(1)?.sqrt()? + EPSILON)?;
    Ok(x.broadcast_div(&length)?)
}

/// The mean of each map after bilinear interpolation to another size; what every value counts in it says it without the
/// large map.
/// // (b, h', w') -> (b)
fn mean_of_interpolated(map: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, rows, columns) = map.dims3()?;
    let rows = Tensor::new(shares(rows, h), map.device())?.reshape((1, (), 1))?;
    let columns = Tensor::new(shares(columns, w), map.device())?;
    Ok(map.broadcast_mul(&rows)?.broadcast_mul(&columns)?.sum((D::Minus2, D::Minus1))?)
}

/// What each of `from` values counts in the mean of the `to` values that are interpolated between them linearly,
/// PyTorch's way with `align_corners=False`. They are equal where `from` divides `to`, and nearly so elsewhere.
fn shares(from: usize, to: usize) -> Vec<f32> {
    let mut shares = vec![0.0; from];
    for i in 0..to {
        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        shares[low] += 1.0 - at.fract();
        shares[high] += at.fract();
    }
    shares.into_iter().map(|share| (share / to as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_interpolated_values_count() {
        assert_eq!(shares(4, 8), [0.25; 4]);
        assert_eq!(shares(1, 5), [1.0]);
        // Values at 1/6, 3/6 and 5/6; those between, at 1/4 and 3/4, are three quarters the nearer of the outer two.
        assert_eq!(shares(3, 2), [0.375, 0.25, 0.375]);
    }
}

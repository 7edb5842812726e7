//! Rotary position embedding in three dimensions (Su et al. 2021, arXiv 2104.09864, once for each axis).

use candle_core::{Device, Tensor};

use super::Grid;
use crate::{Error, Result};

/// Tables of cosines and sines for each axis; neighbouring channels form a pair that is rotated. Angles in f64.
#[derive(Debug, Clone)]
pub struct Rope3d {
    axes: [(Tensor, Tensor); 3], // (positions, pairs) each
    positions: usize,
}

impl Rope3d {
    /// Tables for so many channels of a head (even numbers) for time, height and width, and so many positions on each
    /// axis. Channel `2 i` of `dim` turns by `theta^(-2 i / dim)` a position.
    pub fn new(channels: [usize; 3], theta: f64, positions: usize, device: &Device) -> Result<Self> {
        let table = |dim: usize| -> Result<(Tensor, Tensor)> {
            let pairs = dim / 2;
            let angles: Vec<f64> = (0..positions)
                .flat_map(|p| (0..pairs).map(move |i| p as f64 / theta.powf(2.0 * i as f64 / dim as f64)))
                .collect();
            let tensor = |f: fn(f64) -> f64| {
                Tensor::from_vec(angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>(), (positions, pairs), device)
            };
            Ok((tensor(f64::cos)?, tensor(f64::sin)?))
        };
        let [frames, height, width] = channels;
        Ok(Rope3d { axes: [table(frames)?, table(height)?, table(width)?], positions })
    }

    /// Cosines and sines for every token of a grid. // (tokens, head_dim / 2) each
    pub fn at(&self, grid: Grid) -> Result<(Tensor, Tensor)> {
        let sizes = [grid.frames, grid.height, grid.width];
        if sizes.iter().any(|&size| size > self.positions) {
            return Err(Error::Input {
                what: "tokens along an axis",
                expected: format!("at most {}", self.positions),
                found: format!("{sizes:?} (frames, height, width)"),
            });
        }
        let spread = |axis: usize, table: &Tensor| -> Result<Tensor> {
            let pairs = table.dim(1)?;
            let mut shape = [1, 1, 1, pairs];
            shape[axis] = sizes[axis];
            let rows = table.narrow(0, 0, sizes[axis])?.reshape(&shape[..])?;
            Ok(rows.broadcast_as((sizes[0], sizes[1], sizes[2], pairs))?.reshape((grid.tokens(), pairs))?)
        };
        let [f, h, w] = &self.axes;
        let cos = Tensor::cat(&[spread(0, &f.0)?, spread(1, &h.0)?, spread(2, &w.0)?], 1)?;
        let sin = Tensor::cat(&[spread(0, &f.1)?, spread(1, &h.1)?, spread(2, &w.1)?], 1)?;
        Ok((cos, sin))
    }
}

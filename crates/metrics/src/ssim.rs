//! Structural similarity (Wang et al. 2004): Gaussian window of 11x11, sigma 1.5, on each channel of RGB in [0, 1]; only where the
//! window lies inside the frame, mean over positions and channels.

use crate::{Better, Error, FramePair, Meter, Metric, Result};

pub(crate) const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// 1 where a frame equals the reference.
pub static SSIM: Metric = Metric { key: "ssim", name: "SSIM", unit: "", better: Better::Higher, digits: 4, of_frame };

fn of_frame(_: &Meter, pair: &FramePair) -> Result<Option<f64>> {
    let (width, height) = (pair.width, pair.height);
    if width < WINDOW || height < WINDOW {
        return Err(Error::TooSmall { metric: "SSIM", width, height, least: WINDOW });
    }
    Ok(Some(pair.similarity().iter().map(|channel| channel.whole).sum::<f64>() / 3.0))
}

/// How alike a channel of two pictures is, and how alike in contrast and structure alone; means over positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Similarity {
    pub whole: f64,
    pub contrast: f64,
}

/// Of a channel of pictures of one size.
pub(crate) fn similarity(a: &Plane, b: &Plane) -> Similarity {
    let window = gaussian();
    let smooth = |f: fn(f64, f64) -> f64| a.with(b, f).smoothed(&window).values;
    let (mean_a, mean_b) = (smooth(|a, _| a), smooth(|_, b| b));
    let (square_a, square_b, product) = (smooth(|a, _| a * a), smooth(|_, b| b * b), smooth(|a, b| a * b));
    let (mut whole, mut contrast) = (0.0, 0.0);
    for i in 0..mean_a.len() {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (variance_a, variance_b, covariance) = (square_a[i] - ma * ma, square_b[i] - mb * mb, product[i] - ma * mb);
        let alike = (2.0 * covariance + C2) / (variance_a + variance_b + C2);
        whole += alike * (2.0 * ma * mb + C1) / (ma * ma + mb * mb + C1);
        contrast += alike;
    }
    let n = mean_a.len() as f64;
    Similarity { whole: whole / n, contrast: contrast / n }
}

/// The channels of a frame, RGB in [0, 1].
pub(crate) fn planes(frame: &[u8], width: usize) -> [Plane; 3] {
    std::array::from_fn(|channel| Plane {
        values: frame.iter().skip(channel).step_by(3).map(|&v| v as f64 / 255.0).collect(),
        width,
    })
}

fn gaussian() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|i| {
        let distance = i as f64 - (WINDOW / 2) as f64;
        (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// One channel of a picture, row by row.
pub(crate) struct Plane {
    values: Vec<f64>,
    width: usize,
}

impl Plane {
    fn with(&self, other: &Plane, f: fn(f64, f64) -> f64) -> Plane {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| f(*a, *b)).collect();
        Plane { values, width: self.width }
    }

    /// Weighted means where the whole window fits, along rows and then along columns.
    fn smoothed(&self, window: &[f64; WINDOW]) -> Plane {
        self.along_rows(window).transposed().along_rows(window)
    }

    fn along_rows(&self, window: &[f64; WINDOW]) -> Plane {
        let mean = |values: &[f64]| values.iter().zip(window).map(|(v, w)| v * w).sum::<f64>();
        let rows = self.values.chunks_exact(self.width).flat_map(|row| row.windows(WINDOW).map(mean));
        Plane { values: rows.collect(), width: self.width - WINDOW + 1 }
    }

    fn transposed(&self) -> Plane {
        let height = self.values.len() / self.width;
        let values = (0..self.width).flat_map(|x| (0..height).map(move |y| self.values[y * self.width + x]));
        Plane { values: values.collect(), width: height }
    }

    /// Half the size, each value the mean of four; an odd last row or column is left out.
    pub fn halved(&self) -> Plane {
        let width = self.width / 2;
        let rows = self.values.chunks_exact(2 * self.width);
        let values = rows.flat_map(|pair| {
            let (upper, lower) = pair.split_at(self.width);
            (0..width).map(move |x| (upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1]) / 4.0)
        });
        Plane { values: values.collect(), width }
    }
}

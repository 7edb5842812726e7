//! Structural similarity (Wang et al. 2004): Gaussian window of 11x11, sigma 1.5, on each channel of RGB in [0, 1]; only where the
//! window lies inside the frame, mean over positions and channels.

use super::Frames;
use crate::{Error, Result};

const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Of every frame, 1 where it equals the reference.
pub fn ssim_of_frames(reference: Frames, video: Frames) -> Result<Vec<f64>> {
    reference.check_against(video)?;
    let (width, height) = (reference.width, reference.height);
    if width < WINDOW || height < WINDOW {
        return Err(Error::Request {
            what: "frames",
            found: format!("{width}x{height}"),
            expected: format!("SSIM needs at least {WINDOW}x{WINDOW}"),
        });
    }
    let window = gaussian();
    let of_channel = |a: &[u8], b: &[u8], channel: usize| {
        let plane = |frame: &[u8]| {
            Plane::new(frame.iter().skip(channel).step_by(3).map(|&v| v as f64 / 255.0).collect(), width)
        };
        let (a, b) = (plane(a), plane(b));
        let smooth = |f: fn(f64, f64) -> f64| a.with(&b, f).smoothed(&window).0;
        let (mean_a, mean_b) = (smooth(|a, _| a), smooth(|_, b| b));
        let (square_a, square_b, product) = (smooth(|a, _| a * a), smooth(|_, b| b * b), smooth(|a, b| a * b));
        let similarity = |i: usize| {
            let (ma, mb) = (mean_a[i], mean_b[i]);
            let (variance_a, variance_b, covariance) =
                (square_a[i] - ma * ma, square_b[i] - mb * mb, product[i] - ma * mb);
            (2.0 * ma * mb + C1) * (2.0 * covariance + C2) / ((ma * ma + mb * mb + C1) * (variance_a + variance_b + C2))
        };
        (0..mean_a.len()).map(similarity).sum::<f64>() / mean_a.len() as f64
    };
    let frames = reference.frames().zip(video.frames());
    Ok(frames.map(|(a, b)| (0..3).map(|channel| of_channel(a, b, channel)).sum::<f64>() / 3.0).collect())
}

fn gaussian() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|i| {
        let distance = i as f64 - (WINDOW / 2) as f64;
        (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// Values and the width of a row.
struct Plane(Vec<f64>, usize);

impl Plane {
    fn new(values: Vec<f64>, width: usize) -> Self {
        Plane(values, width)
    }

    fn with(&self, other: &Plane, f: fn(f64, f64) -> f64) -> Plane {
        Plane(self.0.iter().zip(&other.0).map(|(a, b)| f(*a, *b)).collect(), self.1)
    }

    /// Weighted means where the whole window fits, along rows and then along columns.
    fn smoothed(&self, window: &[f64; WINDOW]) -> Plane {
        self.along_rows(window).transposed().along_rows(window)
    }

    fn along_rows(&self, window: &[f64; WINDOW]) -> Plane {
        let mean = |values: &[f64]| values.iter().zip(window).map(|(v, w)| v * w).sum::<f64>();
        let rows = self.0.chunks_exact(self.1).flat_map(|row| row.windows(WINDOW).map(mean));
        Plane(rows.collect(), self.1 - WINDOW + 1)
    }

    fn transposed(&self) -> Plane {
        let height = self.0.len() / self.1;
        let values = (0..self.1).flat_map(|x| (0..height).map(move |y| self.0[y * self.1 + x]));
        Plane(values.collect(), height)
    }
}

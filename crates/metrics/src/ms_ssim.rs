//! Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003): contrast and structure at five sizes, each half
//! the last, and brightness at the smallest, none below zero, multiplied with the exponents of the paper. Windows and
//! means are those of SSIM: each channel alone, only where the window lies inside the frame, then the mean of the
//! channels.

use crate::Result;
use crate::metric::{Better, Metric};
use crate::pair::FramePair;
use crate::window::{Plane, Similarity, WINDOW, similarity};

const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// The window has to fit into the smallest size.
const SMALLEST: usize = WINDOW << (EXPONENTS.len() - 1);

/// 1 where a frame equals the reference; absent for frames smaller than 176x176, which cannot be halved so often.
pub static MS_SSIM: Metric =
    Metric { key: "ms_ssim", name: "MS-SSIM", unit: "", better: Better::Higher, digits: 4, of_frame };

fn of_frame(pair: &FramePair) -> Result<Option<f64>> {
    if pair.width.min(pair.height) < SMALLEST {
        return Ok(None);
    }
    let [reference, video] = pair.channels();
    let channels = reference.iter().zip(video).zip(pair.similarity());
    Ok(Some(channels.map(|((a, b), full)| of_channel(a, b, full)).sum::<f64>() / 3.0))
}

/// Of a channel, whose similarity at full size is known.
fn of_channel(a: &Plane, b: &Plane, full: &Similarity) -> f64 {
    let (mut a, mut b) = (a.halved(), b.halved());
    let mut product = full.contrast.max(0.0).powf(EXPONENTS[0]);
    for (scale, exponent) in EXPONENTS.into_iter().enumerate().skip(1) {
        if scale > 1 {
            (a, b) = (a.halved(), b.halved());
        }
        let found = similarity(&a, &b);
        let factor = if scale + 1 < EXPONENTS.len() { found.contrast } else { found.whole };
        product *= factor.max(0.0).powf(exponent);
    }
    product
}

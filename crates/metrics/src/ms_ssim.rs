//! Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003): contrast and structure at five sizes, each half the last, and
//! brightness at the smallest, none below zero, multiplied with the exponents of the paper. Windows and means are those of SSIM:
//! each channel alone, only where the window lies inside the frame, then the mean of the channels.

use crate::ssim::{Plane, Similarity, WINDOW, planes, similarity};
use crate::{Better, FramePair, Meter, Metric, Result};

const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// The window has to fit into the smallest size.
const SMALLEST: usize = WINDOW << (EXPONENTS.len() - 1);

/// 1 where a frame equals the reference; absent for frames smaller than 176x176, which cannot be halved so often.
pub static MS_SSIM: Metric =
    Metric { key: "ms_ssim", name: "MS-SSIM", unit: "", better: Better::Higher, digits: 4, of_frame };

fn of_frame(_: &Meter, pair: &FramePair) -> Result<Option<f64>> {
    if pair.width.min(pair.height) < SMALLEST {
        return Ok(None);
    }
    let channels = planes(pair.reference, pair.width).into_iter().zip(planes(pair.video, pair.width));
    let of_channel = |((a, b), full): ((Plane, Plane), &Similarity)| of_channel(a, b, full);
    Ok(Some(channels.zip(pair.similarity()).map(of_channel).sum::<f64>() / 3.0))
}

/// Of a channel, whose similarity at full size is known.
fn of_channel(mut a: Plane, mut b: Plane, full: &Similarity) -> f64 {
    let mut product = 1.0;
    for (scale, exponent) in EXPONENTS.into_iter().enumerate() {
        let found = match scale {
            0 => *full,
            _ => {
                (a, b) = (a.halved(), b.halved());
                similarity(&a, &b)
            }
        };
        let factor = if scale + 1 < EXPONENTS.len() { found.contrast } else { found.whole };
        product *= factor.max(0.0).powf(exponent);
    }
    product
}

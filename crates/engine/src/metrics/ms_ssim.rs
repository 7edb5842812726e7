//! Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003): contrast and structure at five sizes, each half the last, and
//! brightness at the smallest, none below zero, multiplied with the exponents of the paper. Windows and means are those of SSIM:
//! each channel alone, only where the window lies inside the frame, then the mean of the channels.

use rayon::iter::ParallelIterator;

use super::Frames;
use super::ssim::{Plane, WINDOW, planes, similarity};
use crate::Result;

const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// The window has to fit into the smallest size.
const SMALLEST: usize = WINDOW << (EXPONENTS.len() - 1);

/// Of every frame, 1 where it equals the reference; `None` for frames smaller than 176x176, which cannot be halved so often.
pub fn ms_ssim_of_frames(reference: Frames, video: Frames) -> Result<Option<Vec<f64>>> {
    reference.check_against(video)?;
    let width = reference.width;
    if width.min(reference.height) < SMALLEST {
        return Ok(None);
    }
    let of_channel = |(mut a, mut b): (Plane, Plane)| {
        let mut product = 1.0;
        for (scale, exponent) in EXPONENTS.into_iter().enumerate() {
            if scale > 0 {
                (a, b) = (a.halved(), b.halved());
            }
            let found = similarity(&a, &b);
            let factor = if scale + 1 < EXPONENTS.len() { found.contrast } else { found.whole };
            product *= factor.max(0.0).powf(exponent);
        }
        product
    };
    let of_frame = |(a, b)| planes(a, width).into_iter().zip(planes(b, width)).map(of_channel).sum::<f64>() / 3.0;
    Ok(Some(reference.pairs(video).map(of_frame).collect()))
}

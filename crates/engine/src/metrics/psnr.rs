//! Peak signal to noise ratio, in dB, of RGB in [0, 1].
//!
//! Two conventions live side by side in the literature and differ by a decibel or more: a value for each frame, then the mean
//! (VideoSys, NaviCache), and one error over the whole video (EasyCache).

use super::Frames;
use crate::Result;

/// A frame with less error than this counts as equal.
const NO_ERROR: f64 = 1e-10;
/// What equal frames have.
const EQUAL: f64 = 100.0;

/// Of every frame; 100 where it equals the reference.
pub fn psnr_of_frames(reference: Frames, video: Frames) -> Result<Vec<f64>> {
    reference.check_against(video)?;
    Ok(reference.frames().zip(video.frames()).map(|(a, b)| decibels(mean_square_error(a, b))).collect())
}

/// Of the video as a whole.
pub fn psnr_of_video(reference: Frames, video: Frames) -> Result<f64> {
    reference.check_against(video)?;
    Ok(decibels(mean_square_error(reference.pixels, video.pixels)))
}

fn mean_square_error(a: &[u8], b: &[u8]) -> f64 {
    let squares: u64 = a.iter().zip(b).map(|(a, b)| (a.abs_diff(*b) as u64).pow(2)).sum();
    squares as f64 / (255.0 * 255.0) / a.len() as f64
}

fn decibels(error: f64) -> f64 {
    if error < NO_ERROR { EQUAL } else { -10.0 * error.log10() }
}

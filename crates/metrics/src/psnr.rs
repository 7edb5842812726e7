//! Peak signal to noise ratio, in dB, of RGB in [0, 1].
//!
//! Two conventions live side by side in the literature and differ by a decibel or more: a value for each frame, then
//! the mean (VideoSys, NaviCache), and one error over the whole video (EasyCache).

use crate::metric::{Better, Metric};

/// A frame with less error than this counts as equal.
const NO_ERROR: f64 = 1e-10;
/// What equal frames have.
const EQUAL: f64 = 100.0;

/// Of every frame; 100 where it equals the reference.
pub static PSNR: Metric = Metric {
    key: "psnr",
    name: "PSNR",
    unit: "dB",
    better: Better::Higher,
    digits: 2,
    of_frame: |pair| Ok(Some(decibels(pair.squares(), pair.video.len()))),
};

/// Of so many values with this sum of squared differences, in grey levels.
pub(crate) fn decibels(squares: u64, values: usize) -> f64 {
    let error = squares as f64 / (255.0 * 255.0) / values as f64;
    if error < NO_ERROR { EQUAL } else { -10.0 * error.log10() }
}

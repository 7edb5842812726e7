//! How far a video is from a reference: metrics of 8-bit RGB frames, after the definitions that papers of this field use.
//!
//! A metric is a file and its row in [`METRICS`]; tables, CSV files and pages follow.
#![warn(missing_docs)]

mod convention;
mod curve;
mod curves;
mod error;
mod folders;
mod lpips;
mod meter;
mod motion;
mod ms_ssim;
mod pair;
mod psnr;
mod ssim;

pub use convention::Convention;
pub use curve::Curve;
pub use curves::save_curves;
pub use error::{Error, Result};
pub use folders::Pair;
pub use lpips::{LPIPS, Lpips};
pub use meter::{Comparison, Meter, Scores};
pub use motion::{motion, motion_of_frames};
pub use ms_ssim::MS_SSIM;
pub use navicache_media::Frames;
pub use pair::FramePair;
pub use psnr::PSNR;
pub use ssim::SSIM;

/// Every metric of frames, in the order in which they are shown.
pub static METRICS: &[&Metric] = &[&PSNR, &SSIM, &MS_SSIM, &LPIPS];

/// A metric of frames.
pub struct Metric {
    /// Its name in files.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Its unit; empty where it has none.
    pub unit: &'static str,
    /// Which of two values is the better one.
    pub better: Better,
    /// Digits behind the point that are shown.
    pub digits: usize,
    /// Its value for a frame; `None` where it is not measured: frames are too small, or weights are missing.
    pub of_frame: fn(&Meter, &FramePair) -> Result<Option<f64>>,
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A likeness.
    Higher,
    /// A distance.
    Lower,
}

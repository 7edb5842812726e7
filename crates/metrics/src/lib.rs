//! How far a video is from a reference: metrics of 8-bit RGB frames, after the definitions that papers of this field
//! use.
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
mod metric;
mod motion;
mod ms_ssim;
mod pair;
mod perceptual;
mod psnr;
mod scores;
mod source;
mod ssim;
mod window;

pub use convention::Convention;
pub use curve::Curve;
pub use curves::save_curves;
pub use error::{Error, Result};
pub use folders::Pair;
pub use lpips::LPIPS;
pub use meter::{Comparison, Meter};
pub use metric::{Better, Metric};
pub use ms_ssim::MS_SSIM;
pub use navicache_media::Frames;
pub use pair::FramePair;
pub use perceptual::Lpips;
pub use psnr::PSNR;
pub use scores::Scores;
pub use ssim::SSIM;

/// Every metric of frames, in the order in which they are shown.
pub static METRICS: &[&Metric] = &[&PSNR, &SSIM, &MS_SSIM, &LPIPS];

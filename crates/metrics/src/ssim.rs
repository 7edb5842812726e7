//! Structural similarity (Wang et al. 2004) of each channel of RGB: mean over positions and channels. `window` has the
//! window.

use crate::metric::{Better, Metric};
use crate::pair::FramePair;
use crate::window::WINDOW;
use crate::{Error, Result};

/// 1 where a frame equals the reference.
pub static SSIM: Metric = Metric { key: "ssim", name: "SSIM", unit: "", better: Better::Higher, digits: 4, of_frame };

fn of_frame(pair: &FramePair) -> Result<Option<f64>> {
    let (width, height) = (pair.width, pair.height);
    if width < WINDOW || height < WINDOW {
        return Err(Error::TooSmall { metric: "SSIM", width, height, least: WINDOW });
    }
    Ok(Some(pair.similarity().iter().map(|channel| channel.whole).sum::<f64>() / 3.0))
}

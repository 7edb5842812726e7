//! How large the pixels of a video are in its file.

use std::path::Path;

use super::format::{Format, Purpose};
use crate::picture::{Filter, Picture};
use crate::{Error, Result, Spec};

/// Largest factor: a tiny video fills a screen with it.
pub const SCALE_MAX: usize = 32;

/// How many times as wide and high frames are in the file as they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// So many times, whatever the format.
    Asked(usize),
    /// So many times where people look at the file; as made where programs read it.
    Watched(usize),
}

impl Scale {
    /// The pixels as they were made.
    pub const NONE: Scale = Scale::Asked(1);

    /// The factor for a file of this name.
    ///
    /// # Errors
    ///
    /// The name has no known ending, or the factor is not 1 to [`SCALE_MAX`].
    pub fn factor(self, path: &Path) -> Result<usize> {
        let format = Format::from_path(path)?;
        match self {
            Scale::Watched(_) if format.purpose == Purpose::Data => Ok(1),
            Scale::Asked(factor @ 1..=SCALE_MAX) | Scale::Watched(factor @ 1..=SCALE_MAX) => Ok(factor),
            Scale::Asked(factor) | Scale::Watched(factor) => {
                Err(Error::file(path, format!("scale {factor}: expected 1 to {SCALE_MAX}")))
            }
        }
    }
}

/// What the file holds of a video.
pub(super) fn enlarged_spec(spec: &Spec, factor: usize) -> Spec {
    Spec { width: spec.width.saturating_mul(factor), height: spec.height.saturating_mul(factor), ..*spec }
}

/// A frame, enlarged smoothly: blocks would show the pixels' edges more than what is in them.
pub(super) fn enlarged(rgb: &[u8], spec: &Spec, factor: usize) -> Vec<u8> {
    let frame = Picture { width: spec.width, height: spec.height, rgb: rgb.to_vec() };
    frame.resized(spec.width * factor, spec.height * factor, Filter::Bicubic).rgb
}

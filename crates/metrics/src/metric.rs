//! What a metric of frames is.

use crate::Result;
use crate::pair::FramePair;

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
    pub of_frame: fn(&FramePair) -> Result<Option<f64>>,
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A likeness.
    Higher,
    /// A distance.
    Lower,
}

//! A number for each metric, as papers report them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::metric::Metric;

/// A number for each metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// The metrics of frames by their keys: the mean over frames, or of PSNR what the convention says.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, Option<f64>>,
    /// Motion of the video over motion of the reference.
    pub motion_kept: Option<f64>,
}

impl Scores {
    /// A metric's number; `None` where it was not measured.
    pub fn get(&self, metric: &Metric) -> Option<f64> {
        *self.metrics.get(metric.key)?
    }
}

//! Learned perceptual similarity (Zhang et al. 2018), version 0.1, AlexNet.

use crate::metric::{Better, Metric};

/// 0 where a frame equals the reference: the mean of the map of distances (`spatial=True`). Absent without weights.
pub static LPIPS: Metric = Metric {
    key: "lpips",
    name: "LPIPS",
    unit: "",
    better: Better::Lower,
    digits: 4,
    of_frame: |pair| {
        pair.lpips.map(|lpips| lpips.distance(pair.reference, pair.video, pair.width, pair.height)).transpose()
    },
};

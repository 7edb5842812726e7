//! A value for every frame of a video, and what they come to.

use serde::Serialize;

use crate::metric::Better;

/// A value for every frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Over all frames.
    pub mean: f64,
    /// The value of the worst frame: the smallest, or of a distance the largest.
    pub worst: f64,
    /// Which frame that is, from 0.
    pub worst_frame: usize,
    /// What one frame of twenty is worse than: the 5th percentile, of a distance the 95th.
    pub fifth_percentile: f64,
    /// Frame by frame.
    pub frames: Vec<f64>,
}

impl Curve {
    /// Of at least one value.
    pub(crate) fn new(frames: Vec<f64>, better: Better) -> Self {
        let sign = match better {
            Better::Higher => 1.0,
            Better::Lower => -1.0,
        };
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_by(|&a, &b| (sign * frames[a]).total_cmp(&(sign * frames[b])));
        // Between the two nearest ranks, in proportion.
        let rank = 0.05 * (order.len() - 1) as f64;
        let (low, high) = (frames[order[rank.floor() as usize]], frames[order[rank.ceil() as usize]]);
        Curve {
            mean: frames.iter().sum::<f64>() / frames.len() as f64,
            worst: frames[order[0]],
            worst_frame: order[0],
            fifth_percentile: low + (high - low) * rank.fract(),
            frames,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_in_short() {
        let short = |curve: Curve| (curve.mean, curve.worst, curve.worst_frame, curve.fifth_percentile);
        let values = || (0..=100).map(f64::from).rev().collect();
        assert_eq!(short(Curve::new(values(), Better::Higher)), (50.0, 0.0, 100, 5.0));
        assert_eq!(short(Curve::new(values(), Better::Lower)), (50.0, 100.0, 0, 95.0));
        assert_eq!(short(Curve::new(vec![7.0], Better::Higher)), (7.0, 7.0, 0, 7.0));
    }
}

//! The controller that most triggers share: changes add up along the path until they reach a threshold.

/// A sum of predicted changes since the last compute.
#[derive(Debug, Clone)]
pub(super) struct PathSum {
    sum: f64,
    threshold: f64,
}

impl PathSum {
    pub fn new(threshold: f64) -> Self {
        PathSum { sum: 0.0, threshold }
    }

    /// Adds a step's change. Whether the step may be reused: below the threshold, and never with a threshold of 0,
    /// where a change can be negative too.
    pub fn add(&mut self, change: f64) -> bool {
        self.sum += change;
        self.threshold > 0.0 && self.sum < self.threshold
    }

    /// For a threshold that follows what was seen.
    pub fn set_threshold(&mut self, threshold: f64) {
        self.threshold = threshold;
    }

    /// What has added up.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Something was computed.
    pub fn reset(&mut self) {
        self.sum = 0.0;
    }
}

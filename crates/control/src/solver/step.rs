//! What a step of a solver is: coefficients, and the noise levels that they follow from.

use crate::schedule::NoiseLevel;

/// Data predictions that a [`Combination`] reaches back to.
pub const HISTORY: usize = 3;

/// `sample * x + sum of data[k] * m_{i-k} + noise * z`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Combination {
    /// Coefficient of the sample it starts from.
    pub sample: f64,
    /// Coefficients of the data predictions, newest first.
    pub data: [f64; HISTORY],
    /// Coefficient of fresh standard normal noise; 0 with solvers that add none.
    pub noise: f64,
}

/// `m = sample * x + velocity * v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataPrediction {
    /// Coefficient of the sample that the model saw.
    pub sample: f64,
    /// Coefficient of the velocity it predicted.
    pub velocity: f64,
}

/// What is done with a step's prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPlan {
    /// First: velocity to data prediction `m_i`, which becomes the newest.
    pub to_data: DataPrediction,
    /// Then, with some solvers: the sample is computed once more, from the *last* step's (corrected) sample and what is
    /// now known. Absent: the sample stays the one that the model saw.
    pub correct: Option<Combination>,
    /// Last: the next sample, from this step's.
    pub advance: Combination,
}

/// The noise levels around a step.
pub(super) struct Levels {
    /// Where it ends; `None` is no noise at all.
    pub next: Option<NoiseLevel>,
    pub now: NoiseLevel,
    pub last: Option<NoiseLevel>,
    pub before_last: Option<NoiseLevel>,
}

/// The end of every run: all of the newest data prediction, nothing of the noise.
pub(super) const TO_DATA: Combination = Combination { sample: 0.0, data: [1.0, 0.0, 0.0], noise: 0.0 };

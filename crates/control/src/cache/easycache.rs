//! EasyCache: *Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching*
//! (Zhou et al. 2025, arXiv 2507.02860; code H-EmbodVis/EasyCache).
//!
//! The ratio of output change to input change moves slowly along the trajectory. It is measured at every computed step
//! and held until the next one; times the input change it predicts how much the output has moved, and the predictions
//! of a run of steps add up until they reach the threshold.
//!
//! | paper | here |
//! |---|---|
//! | transformation rate `k_t` | `ratio` |
//! | accumulated deviation `E_t` | `change`, relative to the last computed output |
//! | threshold `tau` | `threshold` |
//! | warm-up `R` | `warmup_steps` |
//!
//! The presets of Wan and HunyuanVideo are the release's. It was not released for Open-Sora: the 0.35 there is
//! NaviCache's setting for that model.

use super::approx::FOR_STEPS;
use super::path_sum::PathSum;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "easycache",
    line: "predicted output change: input change times the last measured ratio",
    paper: "Zhou et al. 2025, arXiv 2507.02860",
    source: "the released code",
    needs: None,
};

options! {
    /// Predicted relative output change at which a step is computed again. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a reused prediction is approximated.
    #[serde(default)]
    reuse: Reuse,
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        let change = PathSum::new(self.threshold);
        Box::new(EasyCache { reuse: self.reuse, change, ratio: None, output_magnitude: None })
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.check(FOR_STEPS)
    }
}

struct EasyCache {
    reuse: Reuse,
    /// Predicted, since the last computed step, relative to its output.
    change: PathSum,
    ratio: Option<f64>,
    output_magnitude: Option<f64>,
}

impl Policy for EasyCache {
    fn asks(&self) -> Asks {
        asks(self.reuse)
    }

    fn decide(&mut self, _: At, measured: &Measurements) -> Decision {
        match (self.ratio, measured.get(INPUT_CHANGE), self.output_magnitude) {
            (Some(ratio), Some(input_change), Some(output)) if self.change.add(ratio * input_change / output) => {
                Decision::Reuse(self.reuse.into())
            }
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.change.set_threshold(threshold);
        true
    }

    fn expected_miss(&self) -> Option<f64> {
        (self.reuse == Reuse::Residual).then(|| self.change.sum())
    }

    fn computed(&mut self, _: At, measured: &Measurements) {
        self.change.reset();
        self.output_magnitude = measured.get(OUTPUT_MAGNITUDE);
        if let Some(ratio) = observed_ratio(measured, 0.0) {
            self.ratio = Some(ratio);
        }
    }
}

/// How far the input moved since the step before.
pub(super) const INPUT_CHANGE: Quantity = Subject::Input.by(Measure::ChangeSinceVisit);
/// The size of the output.
pub(super) const OUTPUT_MAGNITUDE: Quantity = Subject::Output.by(Measure::Magnitude);
const INPUT_CHANGE_SINCE_COMPUTE: Quantity = Subject::Input.by(Measure::ChangeSinceCompute);
/// How far the output moved since the last computed step.
pub(super) const OUTPUT_CHANGE_SINCE_COMPUTE: Quantity = Subject::Output.by(Measure::ChangeSinceCompute);

/// What every policy asks for that predicts the output change from the ratio to the input change.
pub(super) fn asks(reuse: Reuse) -> Asks {
    let question = Question {
        to_decide: vec![INPUT_CHANGE],
        to_learn: vec![INPUT_CHANGE_SINCE_COMPUTE, OUTPUT_CHANGE_SINCE_COMPUTE, OUTPUT_MAGNITUDE],
        to_reuse: vec![reuse.into()],
    };
    Asks { step: Some(question), ..Asks::default() }
}

/// The ratio between two neighbouring computed steps, `m(o_i - o_c) / (m(x_i - x_c) + epsilon)`; absent at the first
/// one.
pub(super) fn observed_ratio(measured: &Measurements, epsilon: f64) -> Option<f64> {
    Some(measured.get(OUTPUT_CHANGE_SINCE_COMPUTE)? / (measured.get(INPUT_CHANGE_SINCE_COMPUTE)? + epsilon))
}

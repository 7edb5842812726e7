//! NaviCache: feature caching steered like an inertial navigation system (ICML 2026, arXiv 2606.26795; code
//! HelloZicky/NaviCache). This is the released algorithm.
//!
//! Like EasyCache, the output change of a step is predicted as ratio times input change; unlike it, the ratio is
//! tracked by a scalar Kalman filter instead of being held from the last computed step. During the alignment steps at
//! the start every step is computed and the measured ratio overwrites the estimate. On Wan2.2 alone the release does
//! not overwrite (commit 6d29edc): the filter begins with a ratio of 0 and a variance of 1 and corrects itself from the
//! second computed step on (`alignment=filtered`).
//!
//! | paper | here |
//! |---|---|
//! | feature change ratio `r` | `ratio` |
//! | its uncertainty `P` | `variance` |
//! | process noise `Q`, measurement noise `R` | `process_noise`, `measurement_noise` |
//! | calibrated fusion factor `K` | `gain` |
//! | Initial Alignment, `N_align` | `align_steps` |
//! | Prior Projection, Observational Rectification | [`Filter::project`], [`Filter::correct`] |
//! | accumulated predicted variation `eps_acc` | `change`, relative to the last computed output |
//! | threshold `tau` | `threshold` |
//!
//! In the released code the filter moves at computed steps only, the variance does not grow while steps are reused, and
//! the gate does not use it: with `Q = R` the gain tends to the golden ratio 0.618, an exponential moving average. That
//! is what the defaults do. The paper describes more than the code has. Its formulas are not public, so these options
//! are reconstructions of ours, each neutral by default:
//!
//! | in the paper | option | what it does here |
//! |---|---|---|
//! | Prior Projection at every step | `projection=every_step` | the variance grows by `Q` at reused steps too |
//! | time-dependent noise | `noise_floor` | `Q_i = Q (f + (1 - f) (1 - i/S)^2)`: early steps change faster |
//! | uncertainty-aware gate | `uncertainty` | the gate takes the ratio plus so many standard deviations |
//! | drift state | `drift` | a second state, the ratio's change a step, that fades by this factor a step |

use serde::{Deserialize, Serialize};

use super::approx::FOR_STEPS;
use super::easycache::{INPUT_CHANGE, OUTPUT_MAGNITUDE, asks, observed_ratio};
use super::path_sum::PathSum;
use super::{About, Asks, At, Decision, Guard, Measurements, Method, Policy, Reuse, Run};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "navicache",
    line: "predicted output change: input change times a ratio that a Kalman filter tracks",
    paper: "ICML 2026, arXiv 2606.26795",
    source: "the released code; the paper's wider form as options is our reconstruction",
    needs: None,
};

/// Added to denominators, as in the released code.
const EPSILON: f64 = 1e-8;
/// Variance of every state at the end of the alignment.
const ALIGNED_VARIANCE: f64 = 1.0;

options! {
    /// Predicted relative output change at which a step is computed again. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed, to estimate the ratio.
    align_steps: usize,
    /// What a ratio measured in the alignment steps does.
    #[serde(default)]
    alignment: Alignment,
    /// Variance that the ratio gains with every projection.
    process_noise: f64,
    /// Variance of one measured ratio.
    measurement_noise: f64,
    /// When the estimate is projected.
    #[serde(default)]
    projection: Projection,
    /// Process noise at the last step as a part of that at the first, 0 to 1.
    #[serde(default = "constant_noise")]
    noise_floor: f64,
    /// Standard deviations that the gate adds to the ratio.
    #[serde(default)]
    uncertainty: f64,
    /// Factor by which the ratio's drift fades with every projection, 0 to 1; absent: no drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drift: Option<f64>,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a reused prediction is approximated.
    #[serde(default)]
    reuse: Reuse,
}

fn constant_noise() -> f64 {
    1.0
}

/// What the ratios of the alignment steps do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alignment {
    /// Each is the estimate: the released code but for Wan2.2.
    #[default]
    Overwritten,
    /// They correct the estimate as all others do; it begins at 0. The released code for Wan2.2.
    Filtered,
}

/// When the filter projects its estimate forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Once from one computed step to the next, however far: the released code.
    #[default]
    AtComputed,
    /// Once a step.
    EveryStep,
}

impl Config {
    /// Variance that a projection at a step adds.
    pub fn noise_at(&self, step: usize, steps: usize) -> f64 {
        let left = 1.0 - step as f64 / steps as f64;
        self.process_noise * (self.noise_floor + (1.0 - self.noise_floor) * left * left)
    }
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.align_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        Box::new(NaviCache {
            config: self.clone(),
            steps: run.steps.len(),
            change: PathSum::new(self.threshold),
            filter: Filter::new(self.measurement_noise, self.drift),
            computed: 0,
            output_magnitude: None,
        })
    }

    fn check(&self) -> Result<(), String> {
        let parts = [("noise_floor", self.noise_floor), ("drift", self.drift.unwrap_or_default())];
        match parts.into_iter().find(|(_, value)| *value > 1.0) {
            Some((option, value)) => Err(format!("{option} is {value}, expected 0 to 1")),
            None => self.reuse.check(FOR_STEPS),
        }
    }
}

struct NaviCache {
    config: Config,
    steps: usize,
    /// Predicted, since the last computed step, relative to its output.
    change: PathSum,
    /// As of the last computed step.
    filter: Filter,
    computed: usize,
    output_magnitude: Option<f64>,
}

impl NaviCache {
    /// The filter as it stands when it is used at a step.
    fn projected(&self, to: usize) -> Filter {
        let mut filter = self.filter.clone();
        for step in self.computed + 1..=to {
            filter.project(self.config.noise_at(step, self.steps));
        }
        filter
    }

    /// The ratio that the gate reckons with.
    fn ratio_at(&self, step: usize) -> Option<f64> {
        let filter = match self.config.projection {
            Projection::AtComputed => self.filter.clone(),
            Projection::EveryStep => self.projected(step),
        };
        // NaN stays NaN.
        Some((filter.ratio? + self.config.uncertainty * filter.variance.sqrt()).clamp(0.0, f64::INFINITY))
    }
}

impl Policy for NaviCache {
    fn asks(&self) -> Asks {
        asks(self.config.reuse)
    }

    fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        match (self.ratio_at(at.step), measured.get(INPUT_CHANGE), self.output_magnitude) {
            (Some(ratio), Some(input_change), Some(output)) if self.change.add(ratio * input_change / output) => {
                Decision::Reuse(self.config.reuse.into())
            }
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.change.set_threshold(threshold);
        true
    }

    fn expected_miss(&self) -> Option<f64> {
        (self.config.reuse == Reuse::Residual).then(|| self.change.sum())
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        self.change.reset();
        self.output_magnitude = measured.get(OUTPUT_MAGNITUDE);
        if let Some(ratio) = observed_ratio(measured, EPSILON) {
            let filtered = self.config.alignment == Alignment::Filtered;
            if at.step < self.config.align_steps && !filtered {
                self.filter.align(ratio);
            } else {
                if filtered {
                    self.filter.ratio.get_or_insert(0.0);
                }
                match self.config.projection {
                    Projection::AtComputed => self.filter.project(self.config.noise_at(at.step, self.steps)),
                    Projection::EveryStep => self.filter = self.projected(at.step),
                }
                self.filter.correct(ratio);
            }
        }
        self.computed = at.step;
    }
}

/// A Kalman filter on a ratio that walks at random, and on its drift if it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The estimate, once there was a measurement.
    pub ratio: Option<f64>,
    /// Its variance.
    pub variance: f64,
    /// Change of the ratio with every projection.
    pub drift: f64,
    drift_variance: f64,
    covariance: f64,
    measurement_noise: f64,
    fade: Option<f64>,
}

impl Filter {
    /// A filter that has seen nothing. `fade`: factor of the drift with every projection; `None`: no drift.
    pub fn new(measurement_noise: f64, fade: Option<f64>) -> Self {
        let drift_variance = if fade.is_some() { ALIGNED_VARIANCE } else { 0.0 };
        let (ratio, drift, covariance) = (None, 0.0, 0.0);
        Filter { ratio, variance: ALIGNED_VARIANCE, drift, drift_variance, covariance, measurement_noise, fade }
    }

    /// The measurement is the estimate, its change from the last one the drift.
    pub fn align(&mut self, measured: f64) {
        let mut aligned = Filter::new(self.measurement_noise, self.fade);
        aligned.ratio = Some(measured);
        if self.fade.is_some() {
            aligned.drift = self.ratio.map_or(0.0, |last| measured - last);
        }
        *self = aligned;
    }

    /// Moves the estimate forward: variance grows by `noise`, the ratio by its drift.
    pub fn project(&mut self, noise: f64) {
        let Some(fade) = self.fade else {
            self.variance += noise;
            return;
        };
        self.ratio = self.ratio.map(|ratio| (ratio + self.drift).clamp(0.0, f64::INFINITY));
        self.variance += 2.0 * self.covariance + self.drift_variance + noise;
        self.covariance = fade * (self.covariance + self.drift_variance);
        self.drift_variance = fade * fade * self.drift_variance + noise;
        self.drift *= fade;
    }

    /// Corrects the estimate by a measurement. Returns the gain. The first measurement of all aligns.
    pub fn correct(&mut self, measured: f64) -> f64 {
        let Some(ratio) = self.ratio else {
            self.align(measured);
            return 1.0;
        };
        let spread = self.variance + self.measurement_noise + EPSILON;
        let (gain, drift_gain) = (self.variance / spread, self.covariance / spread);
        self.ratio = Some(ratio + gain * (measured - ratio));
        self.drift += drift_gain * (measured - ratio);
        self.drift_variance -= drift_gain * self.covariance;
        self.covariance *= 1.0 - gain;
        self.variance *= 1.0 - gain;
        gain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_is_followed() {
        // Measurements on a line, one a projection: with a drift that does not fade the filter predicts the next one.
        let mut filter = Filter::new(0.05, Some(1.0));
        let mut plain = Filter::new(0.05, None);
        for i in 0..40 {
            let measured = 1.0 + 0.1 * i as f64;
            for filter in [&mut filter, &mut plain] {
                filter.project(0.05);
                filter.correct(measured);
            }
        }
        filter.project(0.05);
        assert!((filter.ratio.unwrap() - 5.0).abs() < 1e-3, "{filter:?}");
        assert!((plain.ratio.unwrap() - 5.0).abs() > 0.1, "{plain:?}");
    }
}

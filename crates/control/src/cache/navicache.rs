//! NaviCache: feature caching steered like an inertial navigation system (ICML 2026, arXiv 2606.26795; code
//! HelloZicky/NaviCache). This is the released algorithm.
//!
//! Like EasyCache, the output change of a step is predicted as ratio times input change; unlike it, the ratio is tracked by a
//! scalar Kalman filter instead of being held from the last computed step. During the alignment steps at the start every step is
//! computed and the measured ratio overwrites the estimate.
//!
//! | paper | here |
//! |---|---|
//! | feature change ratio `r` | `ratio` |
//! | its uncertainty `P` | `variance` |
//! | process noise `Q`, measurement noise `R` | `process_noise`, `measurement_noise` |
//! | calibrated fusion factor `K` | `gain` |
//! | Initial Alignment, `N_align` | `align_steps` |
//! | Prior Projection, Observational Rectification | the two halves of [`Filter::update`] |
//! | accumulated predicted variation `eps_acc` | `drift`, relative to the last computed output |
//! | threshold `tau` | `threshold` |
//!
//! In the released code the filter moves at computed steps only, the variance does not grow while steps are reused, and the gate
//! does not use it: with `Q = R` the gain tends to the golden ratio 0.618, an exponential moving average.

use serde::{Deserialize, Serialize};

use super::easycache::{asks, observed_ratio};
use super::{Approx, Asks, At, Decision, Guard, Method, Policy, Quantity, Run, Seen};

/// Added to denominators, as in the released code.
const EPSILON: f64 = 1e-8;
/// Variance of the ratio at the end of the alignment.
const ALIGNED_VARIANCE: f64 = 1.0;

/// Options of NaviCache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Predicted relative output change at which a step is computed again. 0 computes every step.
    pub threshold: f64,
    /// So many steps at the start are computed and set the ratio.
    pub align_steps: usize,
    /// Variance that the ratio gains from one computed step to the next.
    pub process_noise: f64,
    /// Variance of one measured ratio.
    pub measurement_noise: f64,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_run: Option<usize>,
    /// How a reused prediction is made up.
    #[serde(default)]
    pub reuse: Approx,
}

impl Method for Config {
    fn name(&self) -> &str {
        "navicache"
    }

    fn guard(&self) -> Guard {
        Guard { first_steps: self.align_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        let filter = Filter::new(self.process_noise, self.measurement_noise);
        Box::new(NaviCache { config: self.clone(), drift: 0.0, filter, output_magnitude: None })
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

struct NaviCache {
    config: Config,
    drift: f64,
    filter: Filter,
    output_magnitude: Option<f64>,
}

impl Policy for NaviCache {
    fn asks(&self) -> Asks {
        asks(self.config.reuse)
    }

    fn decide(&mut self, _: At, seen: &Seen) -> Decision {
        match (self.filter.ratio, seen.get(Quantity::InputChangeSinceVisit), self.output_magnitude) {
            (Some(ratio), Some(input_change), Some(output)) => {
                self.drift += ratio * input_change / output;
                if self.drift < self.config.threshold { Decision::Reuse(self.config.reuse) } else { Decision::Compute }
            }
            _ => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, seen: &Seen) {
        self.drift = 0.0;
        self.output_magnitude = seen.get(Quantity::OutputMagnitude);
        if let Some(ratio) = observed_ratio(seen, EPSILON) {
            if at.step < self.config.align_steps {
                self.filter.align(ratio);
            } else {
                self.filter.update(ratio);
            }
        }
    }
}

/// A scalar Kalman filter on a random walk.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The estimate, once there was a measurement.
    pub ratio: Option<f64>,
    /// Its variance.
    pub variance: f64,
    process_noise: f64,
    measurement_noise: f64,
}

impl Filter {
    /// A filter that has seen nothing.
    pub fn new(process_noise: f64, measurement_noise: f64) -> Self {
        Filter { ratio: None, variance: ALIGNED_VARIANCE, process_noise, measurement_noise }
    }

    /// The measurement is the estimate.
    pub fn align(&mut self, measured: f64) {
        self.ratio = Some(measured);
        self.variance = ALIGNED_VARIANCE;
    }

    /// Projects the estimate to this computed step, then corrects it by the measurement. Returns the gain. The first
    /// measurement of all aligns.
    pub fn update(&mut self, measured: f64) -> f64 {
        let Some(ratio) = self.ratio else {
            self.align(measured);
            return 1.0;
        };
        let prior = self.variance + self.process_noise;
        let gain = prior / (prior + self.measurement_noise + EPSILON);
        self.ratio = Some(ratio + gain * (measured - ratio));
        self.variance = (1.0 - gain) * prior;
        gain
    }
}

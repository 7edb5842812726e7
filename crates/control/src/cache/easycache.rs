//! EasyCache: *Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching*
//! (Zhou et al. 2025, arXiv 2507.02860; code H-EmbodVis/EasyCache).
//!
//! The ratio of output change to input change moves slowly along the trajectory. It is measured at every computed step and held
//! until the next one; times the input change it predicts how much the output has moved, and the predictions of a run of steps
//! add up until they reach the threshold.
//!
//! | paper | here |
//! |---|---|
//! | transformation rate `k_t` | `ratio` |
//! | accumulated deviation `E_t` | `drift`, relative to the last computed output |
//! | threshold `tau` | `threshold` |
//! | warm-up `R` | `warmup_steps` |

use serde::{Deserialize, Serialize};

use super::{Approx, Asks, At, Decision, Guard, Method, Policy, Quantity, Run, Seen};

/// Options of EasyCache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Predicted relative output change at which a step is computed again. 0 computes every step.
    pub threshold: f64,
    /// So many steps at the start are computed.
    pub warmup_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_run: Option<usize>,
    /// How a reused prediction is made up.
    #[serde(default)]
    pub reuse: Approx,
}

impl Method for Config {
    fn name(&self) -> &str {
        "easycache"
    }

    fn guard(&self) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        Box::new(EasyCache { config: self.clone(), drift: 0.0, ratio: None, output_magnitude: None })
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

struct EasyCache {
    config: Config,
    drift: f64,
    ratio: Option<f64>,
    output_magnitude: Option<f64>,
}

impl Policy for EasyCache {
    fn asks(&self) -> Asks {
        asks(self.config.reuse)
    }

    fn decide(&mut self, _: At, seen: &Seen) -> Decision {
        match (self.ratio, seen.get(Quantity::InputChangeSinceVisit), self.output_magnitude) {
            (Some(ratio), Some(input_change), Some(output)) => {
                self.drift += ratio * input_change / output;
                if self.drift < self.config.threshold { Decision::Reuse(self.config.reuse) } else { Decision::Compute }
            }
            _ => Decision::Compute,
        }
    }

    fn computed(&mut self, _: At, seen: &Seen) {
        self.drift = 0.0;
        self.output_magnitude = seen.get(Quantity::OutputMagnitude);
        if let Some(ratio) = observed_ratio(seen, 0.0) {
            self.ratio = Some(ratio);
        }
    }
}

/// What every policy asks for that predicts the output change from the ratio to the input change.
pub(super) fn asks(reuse: Approx) -> Asks {
    Asks {
        to_decide: vec![Quantity::InputChangeSinceVisit],
        to_learn: vec![
            Quantity::InputChangeSinceCompute,
            Quantity::OutputChangeSinceCompute,
            Quantity::OutputMagnitude,
        ],
        to_reuse: vec![reuse],
    }
}

/// The ratio between two neighbouring computed steps, `m(o_i - o_c) / (m(x_i - x_c) + epsilon)`; absent at the first one.
pub(super) fn observed_ratio(seen: &Seen, epsilon: f64) -> Option<f64> {
    let output_change = seen.get(Quantity::OutputChangeSinceCompute)?;
    let input_change = seen.get(Quantity::InputChangeSinceCompute)?;
    Some(output_change / (input_change + epsilon))
}

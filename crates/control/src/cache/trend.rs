//! Trend: our own method. The ratio of output to input change is predicted from its own recent past by weights that are fitted while
//! the video is made, and reused steps follow a line through the last two computed ones.
//!
//! EasyCache holds the last ratio and NaviCache filters it, as if it moved at random. It does not: on recorded runs it falls
//! steadily, and swings around that from step to step. So
//!
//! * **when**: the logarithm of the next ratio is a weighted sum of the last three. The weights begin as 1/3, 2/3 and 0 (a step
//!   resembles the one before the last more than the last) and are fitted to this generation by recursive least squares,
//!   with the beginning as prior. Predicted changes add up to the threshold as in the other two.
//! * **how**: a line in sigma through the residuals of the last two computed steps; what is left is of second order. `max_run` bounds
//!   how far the line is trusted.
//! * **guidance**: the unconditional prediction may be made from the conditional one at alternate computed steps, by their last
//!   difference (`uncond_interval`).
//!
//! Where it loses: at thresholds so large that the line spans many steps, a held residual is the safer guess; and a run with few
//! computed steps gives the fit nothing to learn from. docs/results.md has the figures.

use super::approx::FOR_STEPS;
use super::easycache::{INPUT_CHANGE, OUTPUT_MAGNITUDE, observed_ratio};
use super::path_sum::PathSum;
use super::{About, Approx, Asks, At, Decision, Guard, Method, Policy, Question, Reuse, Run, Scope, Seen};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "trend",
    line: "predicted output change, from a fit of the ratio's own past; values on a line through two computed steps",
    paper: "navicache",
    source: "ours",
    needs: "nothing",
};

options! {
    /// Predicted relative output change at which a step is computed again. 0 computes every step.
    threshold: f64,
    /// So many steps at the start are computed.
    warmup_steps: usize,
    /// One computed step in so many computes the unconditional branch too; 1: all of them.
    #[serde(default = "always")]
    uncond_interval: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a reused prediction is made up.
    #[serde(default = "linear")]
    reuse: Reuse,
}

fn always() -> usize {
    1
}

fn linear() -> Reuse {
    Reuse::Linear
}

/// Added to denominators.
const EPSILON: f64 = 1e-8;
const FROM_COND: Approx = Approx::FromCond { low: 1.0, high: 1.0 };

impl Method for Config {
    fn name(&self) -> &str {
        ABOUT.name
    }

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        Box::new(TrendPolicy {
            config: self.clone(),
            change: PathSum::new(self.threshold),
            ratio: Trend::default(),
            output_magnitude: None,
            without_uncond: 0,
        })
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!(self)
    }

    fn check(&self) -> Result<(), String> {
        if self.uncond_interval == 0 {
            return Err("uncond_interval is 0, expected 1 or more".to_string());
        }
        self.reuse.check(FOR_STEPS)
    }
}

struct TrendPolicy {
    config: Config,
    /// Predicted, since the last computed step, relative to its output.
    change: PathSum,
    ratio: Trend,
    output_magnitude: Option<f64>,
    /// Computed steps in a row that went without the unconditional branch.
    without_uncond: usize,
}

impl Policy for TrendPolicy {
    fn asks(&self) -> Asks {
        let mut asks = super::easycache::asks(self.config.reuse);
        if self.config.uncond_interval > 1 {
            asks.branch = Some(Question { to_reuse: vec![FROM_COND], ..Question::default() });
        }
        asks
    }

    fn decide(&mut self, at: At, seen: &Seen) -> Decision {
        match at.scope {
            Scope::Step => match (self.ratio.predict(), seen.get(INPUT_CHANGE), self.output_magnitude) {
                (Some(ratio), Some(input_change), Some(output)) if self.change.add(ratio * input_change / output) => {
                    self.ratio.pass();
                    Decision::Reuse(self.config.reuse.into())
                }
                _ => Decision::Compute,
            },
            Scope::Branch(Branch::Uncond) if self.without_uncond + 1 < self.config.uncond_interval => {
                self.without_uncond += 1;
                Decision::Reuse(FROM_COND)
            }
            _ => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, seen: &Seen) {
        match at.scope {
            Scope::Branch(Branch::Uncond) => self.without_uncond = 0,
            Scope::Step => {
                self.change.reset();
                self.output_magnitude = seen.get(OUTPUT_MAGNITUDE);
                if let Some(ratio) = observed_ratio(seen, EPSILON) {
                    self.ratio.observe(ratio);
                }
            }
            _ => {}
        }
    }
}

/// Past ratios that the prediction looks at.
const LAGS: usize = 3;
/// Weights of the logarithms of the last ratio, the one before it and the one before that, until there is evidence.
const PRIOR: [f64; LAGS] = [1.0 / 3.0, 2.0 / 3.0, 0.0];
/// How many observations' worth of evidence the prior is, for ratios whose logarithm is about 1.
const PRIOR_WEIGHT: f64 = 10.0;

/// Predicts a positive series one step ahead: an autoregression on its logarithm, fitted by recursive least squares from a prior.
#[derive(Debug, Clone)]
pub struct Trend {
    /// Logarithms, newest first.
    past: Vec<f64>,
    weights: [f64; LAGS],
    /// Inverse of the evidence.
    covariance: [[f64; LAGS]; LAGS],
}

impl Default for Trend {
    fn default() -> Self {
        let diagonal = |i: usize, j: usize| if i == j { 1.0 / PRIOR_WEIGHT } else { 0.0 };
        Trend {
            past: Vec::new(),
            weights: PRIOR,
            covariance: std::array::from_fn(|i| std::array::from_fn(|j| diagonal(i, j))),
        }
    }
}

impl Trend {
    /// The next ratio; `None` before the first observation. With fewer than three, the oldest stands for those before it.
    pub fn predict(&self) -> Option<f64> {
        let oldest = *self.past.last()?;
        let lag = |i: usize| self.past.get(i).copied().unwrap_or(oldest);
        Some((0..LAGS).map(|i| self.weights[i] * lag(i)).sum::<f64>().exp())
    }

    /// A ratio was measured.
    pub fn observe(&mut self, ratio: f64) {
        let value = ratio.ln();
        if !value.is_finite() {
            return;
        }
        if let Some(&past) = self.past.first_chunk::<LAGS>() {
            let spread: [f64; LAGS] = std::array::from_fn(|i| (0..LAGS).map(|j| self.covariance[i][j] * past[j]).sum());
            let scale = 1.0 + (0..LAGS).map(|i| past[i] * spread[i]).sum::<f64>();
            let error = value - (0..LAGS).map(|i| self.weights[i] * past[i]).sum::<f64>();
            for i in 0..LAGS {
                self.weights[i] += spread[i] / scale * error;
                for j in 0..LAGS {
                    self.covariance[i][j] -= spread[i] * spread[j] / scale;
                }
            }
        }
        self.push(value);
    }

    /// A step went by without a measurement: its prediction takes its place, so that lags stay steps.
    pub fn pass(&mut self) {
        if let Some(ratio) = self.predict() {
            self.push(ratio.ln());
        }
    }

    fn push(&mut self, value: f64) {
        self.past.insert(0, value);
        self.past.truncate(LAGS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns_a_swing() {
        // A falling series that swings with period two: predicted far better than by holding the last value.
        let series = |k: usize| (1.0 - 0.02 * k as f64 + if k.is_multiple_of(2) { 0.3 } else { -0.3 }).exp();
        let mut trend = Trend::default();
        let (mut error, mut error_of_hold) = (0.0, 0.0);
        for k in 0..40 {
            if k >= 5 {
                error += (trend.predict().unwrap() / series(k) - 1.0).abs();
                error_of_hold += (series(k - 1) / series(k) - 1.0).abs();
            }
            trend.observe(series(k));
        }
        assert!(error < error_of_hold / 4.0, "{error} {error_of_hold}");
    }

    #[test]
    fn what_is_no_number_is_not_learnt() {
        let mut trend = Trend::default();
        for ratio in [1.0, 0.0, f64::NAN, f64::INFINITY, -1.0] {
            trend.observe(ratio);
        }
        assert_eq!(trend.past.len(), 1);
        assert_eq!(trend.predict(), Some(1.0));
    }
}

//! Trend: our own method. Reused steps follow a straight line through the last two computed ones; how far a line can be
//! trusted is measured at every computed step, by what it would have missed there.
//!
//! Other methods add up how far the output has moved and hold a value until that is too much. A line does not miss by
//! how far the output moves but by how much its path bends, so this method is built like the step-size control of a
//! solver for differential equations (Milne's device: compare the predictor with the truth once that is known):
//!
//! * **how**: a line in sigma through the residuals of the last two computed steps, `c` and `b`.
//! * **what is learnt**: at a computed step, what the line missed, as a bend: miss divided by the distances to `c` and
//!   to `b`. Its logarithm is averaged, the newest with weight 1/4.
//! * **when**: the bend times both distances is the miss to be expected; times the change of sigma it is the error that
//!   the step adds to the latents. A run of reuse ends before its sum reaches `threshold`. Latents have unit size in
//!   every model, so a threshold means the same everywhere: of equal errors in every run the total is smallest for a
//!   number of computed steps.
//! * **distance** is measured along the output's path: the predicted output change of every step, input change times
//!   ratio, as in EasyCache and NaviCache. But the ratio is neither held nor filtered: its logarithm is a weighted sum
//!   of the last three. The weights begin at 1/3, 2/3 and 0 (ratios recorded on Open-Sora swing with period two, so
//!   that a step resembles the one before the last more than the last; the demo model's fall smoothly) and are fitted
//!   to the generation by recursive least squares, with that beginning as prior. [`Trend`] is this predictor.
//!
//! Where it loses: with a fifth of the steps or less a line spans too much; it needs three computed steps before it can
//! begin; where a path turns suddenly the bend is known one compute too late, which `max_run` bounds; and values held
//! (`reuse=residual`) are not what it measures the miss of. docs/results.md has the figures.

use super::approx::FOR_STEPS;
use super::easycache::{INPUT_CHANGE, OUTPUT_CHANGE_SINCE_COMPUTE, asks, observed_ratio};
use super::path_sum::PathSum;
use super::{About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Reuse, Run, Subject};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "trend",
    line: "expected miss of a line through two computed steps, from what lines missed before",
    paper: "navicache",
    source: "ours",
    needs: None,
};

options! {
    /// Mean absolute error that a run of reuse may add to the latents, as predicted. 0 computes every step.
    threshold: f64,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a reused prediction is approximated. What is measured is the miss of `linear`.
    #[serde(default = "linear")]
    reuse: Reuse,
}

fn linear() -> Reuse {
    Reuse::Linear
}

/// Added to denominators.
const EPSILON: f64 = 1e-8;
/// Weight of the newest bend in the average.
const NEWEST: f64 = 0.25;

const RESIDUAL_MAGNITUDE: Quantity = Subject::Residual.by(Measure::Magnitude);
const RELATIVE_MISS: Quantity = Subject::Residual.by(Measure::LineError);

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        Box::new(TrendPolicy {
            reuse: self.reuse,
            sigmas: run.steps.iter().map(|step| step.sigma.0).collect(),
            error: PathSum::new(self.threshold),
            ratio: Trend::default(),
            log_bend: None,
            position: 0.0,
            anchors: None,
        })
    }

    fn check(&self) -> Result<(), String> {
        self.reuse.check(FOR_STEPS)
    }
}

struct TrendPolicy {
    reuse: Reuse,
    sigmas: Vec<f64>,
    /// Predicted, of the latents, since the last computed step.
    error: PathSum,
    ratio: Trend,
    /// Logarithm of a line's miss over its distances from both anchors.
    log_bend: Option<f64>,
    /// Where on the output's path this step is.
    position: f64,
    /// Where the last computed step is, and the one before it.
    anchors: Option<(f64, Option<f64>)>,
}

impl TrendPolicy {
    /// Product of the distances from both anchors.
    fn leverage(&self) -> Option<f64> {
        let (last, before) = self.anchors?;
        Some((self.position - last) * (self.position - before?))
    }

    /// Error that a reused step adds to the latents.
    fn predicted_error(&self, step: usize) -> Option<f64> {
        let after = self.sigmas.get(step + 1).copied().unwrap_or(0.0);
        Some(self.log_bend?.exp() * self.leverage()? * (self.sigmas[step] - after))
    }

    fn learn_bend(&mut self, measured: &Measurements) -> Option<()> {
        let bend = measured.get(RELATIVE_MISS)? * measured.get(RESIDUAL_MAGNITUDE)? / self.leverage()?;
        let newest = Some(bend.ln()).filter(|log| log.is_finite())?;
        let average = self.log_bend.unwrap_or(newest);
        self.log_bend = Some(average + NEWEST * (newest - average));
        Some(())
    }
}

impl Policy for TrendPolicy {
    fn asks(&self) -> Asks {
        let mut asks = asks(self.reuse);
        if let Some(step) = &mut asks.step {
            step.to_learn.extend([RESIDUAL_MAGNITUDE, RELATIVE_MISS]);
        }
        asks
    }

    fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        let (Some(ratio), Some(input_change)) = (self.ratio.predict(), measured.get(INPUT_CHANGE)) else {
            return Decision::Compute;
        };
        self.position += ratio * input_change;
        match self.predicted_error(at.step) {
            Some(error) if self.error.add(error) => {
                self.ratio.pass();
                Decision::Reuse(self.reuse.into())
            }
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.error.set_threshold(threshold);
        true
    }

    fn computed(&mut self, _: At, measured: &Measurements) {
        self.error.reset();
        if let (Some((last, _)), Some(moved)) = (self.anchors, measured.get(OUTPUT_CHANGE_SINCE_COMPUTE)) {
            self.position = last + moved;
        }
        self.learn_bend(measured);
        self.anchors = Some((self.position, self.anchors.map(|(last, _)| last)));
        if let Some(ratio) = observed_ratio(measured, EPSILON) {
            self.ratio.observe(ratio);
        }
    }
}

/// Past ratios that the prediction looks at.
const LAGS: usize = 3;
/// Weights of the logarithms of the last ratio, the one before it and the one before that, until there is evidence.
const PRIOR: [f64; LAGS] = [1.0 / 3.0, 2.0 / 3.0, 0.0];
/// How many observations' worth of evidence the prior is, for ratios whose logarithm is about 1.
const PRIOR_WEIGHT: f64 = 10.0;

/// Predicts a positive series one step ahead: an autoregression on its logarithm, fitted by recursive least squares
/// from a prior.
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
    /// The next ratio; `None` before the first observation. With fewer than three, the oldest stands for those before
    /// it.
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

//! How well each method predicts the next step's output change from its input change, on recorded runs that computed
//! everything.
//!
//! The convention: one step ahead, each run by itself, from the sixth change on (the first five teach), absolute error,
//! mean over steps, then over runs.

use serde_json::{Value, json};

use navicache_control::cache::navicache::{Filter, Projection};
use navicache_control::cache::trend::Trend;
use navicache_control::cache::{CacheConfig, CacheError, CacheSpec, navicache};

/// Relative input and output changes of one run, step by step.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What was run.
    pub name: String,
    /// `m(x_i - x_(i-1)) / m(x_(i-1))` and the same of the output.
    pub changes: Vec<(f64, f64)>,
}

/// Changes at the start of a run that only teach.
pub const TEACHING: usize = 5;

/// The family whose presets the predictors take: the recorded runs are Open-Sora's.
pub const FAMILY: &str = "opensora";

/// Predicts an output change from an input change.
trait Predictor {
    /// The ratio of the next output change to the next input change.
    fn ratio(&self) -> Option<f64>;
    /// The ratio that was measured.
    fn observe(&mut self, ratio: f64);
}

/// How a predictor did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Score {
    /// The method that predicts like this.
    pub method: String,
    /// Its options.
    pub options: Value,
    /// Mean over steps, then over runs.
    pub mean_absolute_error: f64,
}

/// The predictors that are compared if none is named: what EasyCache and NaviCache do, a mean without parameters, and
/// ours.
pub const ALL: [&str; 4] = ["easycache", "navicache", GEOMETRIC_MEAN, "trend"];
/// Geometric mean of the last two ratios: no method's, the simplest that uses that the ratio swings.
pub const GEOMETRIC_MEAN: &str = "geometric_mean";

/// Scores a predictor, a `--cache` argument or [`GEOMETRIC_MEAN`], on recorded runs. `None` for a method that predicts
/// no change.
pub fn score(text: &str, runs: &[Series]) -> Result<Option<Score>, CacheError> {
    if text == GEOMETRIC_MEAN {
        let error = mean_error(runs, |_| Box::new(GeometricMean(Vec::new())));
        return Ok(Some(Score { method: text.to_string(), options: json!({}), mean_absolute_error: error }));
    }
    let config = text.parse::<CacheSpec>()?.resolve(FAMILY)?;
    let error = match &config {
        CacheConfig::EasyCache(_) => mean_error(runs, |_| Box::new(Hold(None))),
        CacheConfig::NaviCache(options) => mean_error(runs, |steps| Box::new(Kalman::new(options, steps))),
        CacheConfig::Trend(_) => mean_error(runs, |_| Box::new(Trend::default())),
        _ => return Ok(None),
    };
    let method = config.method();
    Ok(Some(Score { method: method.name().to_string(), options: method.options(), mean_absolute_error: error }))
}

fn mean_error(runs: &[Series], make: impl Fn(usize) -> Box<dyn Predictor>) -> f64 {
    let of_run = |run: &Series| {
        let mut predictor = make(run.changes.len() + 1);
        let mut errors = Vec::new();
        for (k, &(input, output)) in run.changes.iter().enumerate() {
            if let Some(ratio) = predictor.ratio().filter(|_| k >= TEACHING) {
                errors.push((ratio * input - output).abs());
            }
            predictor.observe(output / input);
        }
        mean(&errors)
    };
    mean(&runs.iter().map(of_run).collect::<Vec<_>>())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The last ratio (EasyCache).
struct Hold(Option<f64>);

impl Predictor for Hold {
    fn ratio(&self) -> Option<f64> {
        self.0
    }

    fn observe(&mut self, ratio: f64) {
        self.0 = Some(ratio);
    }
}

/// NaviCache's filter, with every step computed.
struct Kalman {
    options: navicache::Config,
    filter: Filter,
    steps: usize,
    /// Index of the change that is observed next. As in the published comparison, it is changes that align, not steps.
    step: usize,
}

impl Kalman {
    fn new(options: &navicache::Config, steps: usize) -> Self {
        let filter = Filter::new(options.measurement_noise, options.drift);
        Kalman { options: options.clone(), filter, steps, step: 0 }
    }

    fn projected(&self) -> Filter {
        let mut filter = self.filter.clone();
        filter.project(self.options.noise_at(self.step, self.steps));
        filter
    }
}

impl Predictor for Kalman {
    fn ratio(&self) -> Option<f64> {
        match self.options.projection {
            Projection::AtComputed => self.filter.ratio,
            Projection::EveryStep => self.projected().ratio,
        }
    }

    fn observe(&mut self, ratio: f64) {
        if self.step < self.options.align_steps {
            self.filter.align(ratio);
        } else {
            self.filter = self.projected();
            self.filter.correct(ratio);
        }
        self.step += 1;
    }
}

struct GeometricMean(Vec<f64>);

impl Predictor for GeometricMean {
    fn ratio(&self) -> Option<f64> {
        let last = self.0.last()?;
        let before = self.0.iter().rev().nth(1).unwrap_or(last);
        Some((last * before).sqrt())
    }

    fn observe(&mut self, ratio: f64) {
        self.0.push(ratio);
    }
}

impl Predictor for Trend {
    fn ratio(&self) -> Option<f64> {
        self.predict()
    }

    fn observe(&mut self, ratio: f64) {
        Trend::observe(self, ratio);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_ratio_is_predicted_by_all() {
        let changes = (0..20).map(|k| (0.1 + 0.01 * k as f64, 2.0 * (0.1 + 0.01 * k as f64))).collect();
        let runs = [Series { name: "x".to_string(), changes }];
        for text in ALL {
            let score = score(text, &runs).unwrap().unwrap();
            assert!(score.mean_absolute_error < 0.01, "{score:?}");
        }
        assert_eq!(score("pab", &runs), Ok(None));
        assert!(score("pub", &runs).is_err());
    }

    #[test]
    fn holding_is_wrong_by_the_ratios_change() {
        let changes = (0..7).map(|k| (1.0, if k == 6 { 3.0 } else { 2.0 })).collect();
        let runs = [Series { name: "x".to_string(), changes }];
        assert_eq!(score("easycache", &runs).unwrap().unwrap().mean_absolute_error, 0.5, "steps 5 and 6 count");
        let geometric = score(GEOMETRIC_MEAN, &runs).unwrap().unwrap();
        assert_eq!(geometric.mean_absolute_error, 0.5);
    }
}

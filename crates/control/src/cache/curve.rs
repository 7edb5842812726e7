//! How much a kind of video computes under a method, by threshold and noise level: the table that a target is met with.
//!
//! A curve is the mean over calibrating videos. It is kept over the noise level, not over the index of the step: how
//! far a path has gone is a matter of the former, so that one curve serves every number of steps and every shift.
//! docs/targets.md says how curves are made.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of the format. It grows when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// Fewer thresholds than this span no curve.
const THRESHOLDS_MIN: usize = 2;
/// More thresholds or noise levels than anybody measures.
const POINTS_MAX: usize = 10_000;

/// What a method computes, by threshold and noise level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Version of the format: [`VERSION`].
    pub curve: u32,
    /// The method.
    pub method: String,
    /// Its other options, as they were when this was measured.
    pub options: Map<String, Value>,
    /// The family of models.
    pub family: String,
    /// How many videos it is the mean of.
    pub videos: usize,
    /// Noise levels of the steps that were measured, falling to 0.
    pub sigmas: Vec<f64>,
    /// By threshold, rising.
    pub thresholds: Vec<Row>,
}

/// What is computed at one threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The threshold.
    pub threshold: f64,
    /// Computed steps before each of the noise levels, beginning with 0. Of a step that is reused nothing counts, even
    /// where a part of it runs whatever is decided.
    pub computed: Vec<f64>,
}

impl Curve {
    /// Reads one that somebody wrote.
    ///
    /// # Errors
    /// The text is no curve; says why not.
    pub fn from_json(text: &str) -> Result<Curve, String> {
        let curve: Curve = serde_json::from_str(text).map_err(|e| format!("is no curve: {e}"))?;
        curve.check().map(|()| curve)
    }

    /// As JSON, a threshold a line.
    pub fn to_json(&self) -> String {
        let rows: Vec<String> = self.thresholds.iter().map(|row| format!("    {}", serde_json::json!(row))).collect();
        let mut head = serde_json::json!(self);
        let fields = head.as_object_mut().map(std::mem::take).unwrap_or_default();
        let lines =
            fields.iter().filter(|(name, _)| *name != "thresholds").map(|(name, v)| format!("  \"{name}\": {v}"));
        let lines: Vec<String> = lines.collect();
        format!("{{\n{},\n  \"thresholds\": [\n{}\n  ]\n}}\n", lines.join(",\n"), rows.join(",\n"))
    }

    /// Sixteen hexadecimal digits that differ where curves do (FNV-1a of the JSON): a report says which curve was used.
    pub fn digest(&self) -> String {
        digest(&self.to_json())
    }

    /// The mean of videos: for each threshold, what share of every step each of them computed.
    ///
    /// # Errors
    /// There are too few thresholds, or steps that differ in number.
    pub fn mean(about: About, sigmas: &[f64], rows: &[(f64, Vec<Vec<f64>>)]) -> Result<Curve, String> {
        let About { method, options, family } = about;
        let mut thresholds: Vec<Row> = Vec::new();
        for (threshold, videos) in rows {
            let mut computed = vec![0.0];
            for step in 0..sigmas.len() {
                let shares = videos.iter().map(|shares| shares.get(step).copied().unwrap_or(f64::NAN));
                let mean = shares.sum::<f64>() / videos.len().max(1) as f64;
                computed.push(computed[step] + mean);
            }
            let computed = computed.into_iter().map(|c| (c * 1000.0).round() / 1000.0).collect();
            thresholds.push(Row { threshold: *threshold, computed });
        }
        let sigmas = sigmas.iter().copied().chain([0.0]).collect();
        let videos = rows.first().map_or(0, |(_, videos)| videos.len());
        let curve = Curve { curve: VERSION, method, options, family, videos, sigmas, thresholds };
        curve.check().map(|()| curve)
    }

    /// Steps that a row says are computed between two noise levels.
    pub fn between(&self, row: &Row, from: f64, to: f64) -> f64 {
        self.before(row, to) - self.before(row, from)
    }

    /// Steps computed before a noise level is reached, on lines between those that were measured.
    fn before(&self, row: &Row, sigma: f64) -> f64 {
        let after = self.sigmas.partition_point(|&s| s > sigma);
        if after == 0 {
            return 0.0;
        }
        let (Some(&low), Some(&next)) = (self.sigmas.get(after), row.computed.get(after)) else {
            return row.computed.last().copied().unwrap_or(0.0);
        };
        let (high, before) = (self.sigmas[after - 1], row.computed[after - 1]);
        before + (next - before) * (high - sigma) / (high - low)
    }

    fn check(&self) -> Result<(), String> {
        let Curve { curve, sigmas, thresholds, .. } = self;
        if *curve != VERSION {
            return Err(format!("is a curve of format {curve}, expected {VERSION}"));
        }
        if thresholds.len() < THRESHOLDS_MIN || thresholds.len() > POINTS_MAX || sigmas.len() > POINTS_MAX {
            let (found, levels) = (thresholds.len(), sigmas.len());
            return Err(format!(
                "has {found} thresholds and {levels} noise levels, expected {THRESHOLDS_MIN} to {POINTS_MAX}"
            ));
        }
        let falls = sigmas.len() > 1 && sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        if !falls || sigmas.iter().any(|s| !(0.0..=1.0).contains(s)) || sigmas.last() != Some(&0.0) {
            return Err("its noise levels do not fall from 1 at most to 0".to_string());
        }
        let mut before = 0.0;
        for Row { threshold, computed } in thresholds {
            if !(threshold.is_finite() && *threshold > before) {
                return Err(format!("threshold {threshold} after {before}: expected rising numbers above 0"));
            }
            before = *threshold;
            let rises = computed.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] <= 1.002);
            if computed.len() != sigmas.len() || computed[0] != 0.0 || !rises {
                return Err(format!(
                    "threshold {threshold}: expected {} counts that rise from 0, by one a step at most",
                    sigmas.len()
                ));
            }
        }
        Ok(())
    }
}

/// What a curve is of.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The method.
    pub method: String,
    /// Its options but the threshold.
    pub options: Map<String, Value>,
    /// The family of models.
    pub family: String,
}

/// Sixteen hexadecimal digits that differ where texts do (FNV-1a).
pub(super) fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf29ce484222325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
    format!("{hash:016x}")
}

/// Those that come with the program.
const SHIPPED: &str = include_str!("calibration/targets.json");

/// The curve of a method that comes with the program, of a family of models; of any other where it has none.
pub fn shipped(method: &str, family: &str) -> Option<Curve> {
    let all: Vec<Curve> = serde_json::from_str(SHIPPED).unwrap_or_default();
    let mut of_method: Vec<Curve> = all.into_iter().filter(|curve| curve.method == method).collect();
    let found = of_method.iter().position(|curve| curve.family == family).unwrap_or(0);
    (!of_method.is_empty()).then(|| of_method.swap_remove(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        let about = About { method: "m".to_string(), options: Map::new(), family: "f".to_string() };
        let often = vec![vec![1.0, 1.0, 1.0, 1.0], vec![1.0, 0.0, 1.0, 1.0]];
        let seldom = vec![vec![1.0, 0.0, 0.0, 1.0], vec![1.0, 0.0, 0.0, 1.0]];
        Curve::mean(about, &[1.0, 0.8, 0.5, 0.2], &[(0.1, often), (0.4, seldom)]).unwrap()
    }

    #[test]
    fn it_is_a_mean_over_noise_levels() {
        let curve = curve();
        assert_eq!(curve.thresholds[0].computed, [0.0, 1.0, 1.5, 2.5, 3.5]);
        let between = |from, to| curve.between(&curve.thresholds[0], from, to);
        assert_eq!((between(1.0, 0.8), between(0.8, 0.5), between(1.0, 0.0)), (1.0, 0.5, 3.5));
        assert!((between(0.65, 0.35) - 0.75).abs() < 1e-12, "half of two steps");
    }

    #[test]
    fn it_reads_what_it_writes_and_refuses_what_is_none() {
        let text = curve().to_json();
        let read = Curve::from_json(&text).unwrap();
        assert_eq!((read.digest(), &read), (curve().digest(), &curve()));
        for (from, to, says) in [
            ("\"curve\": 1", "\"curve\": 2", "format 2"),
            ("0.4", "0.04", "expected rising numbers"),
            ("[1.0,0.8,", "[0.7,0.8,", "do not fall"),
            ("[0.0,1.0,1.5", "[0.0,2.0,2.5", "by one a step"),
            ("\"family\"", "\"famly\"", "unknown field"),
            ("1.5,", "", "5 counts"),
        ] {
            assert!(text.contains(from), "{from}: {text}");
            let refused = Curve::from_json(&text.replacen(from, to, 1)).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn those_that_are_shipped_are_curves() {
        let all: Vec<Curve> = serde_json::from_str(SHIPPED).unwrap();
        for curve in all {
            curve.check().unwrap_or_else(|e| panic!("{}: {e}", curve.method));
        }
    }
}

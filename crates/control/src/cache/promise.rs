//! Promises of quality: the largest threshold at which videos are as close to uncached ones as was asked for.
//!
//! How close a video will be cannot be told while it is made; it can be told of many. Videos of a kind are made
//! uncached and at several thresholds. Of every threshold, all but a few videos are closer than some PSNR, or than
//! some error. For `n` videos and a share `a` that may fail (one in twenty), the promise at a threshold is the
//! closeness of rank `floor(a (n + 1))`, the worst first. The largest threshold whose promise is what was asked for
//! then keeps it for a share `1 - a` of videos that are drawn like those `n`, if a larger threshold never brings a
//! video closer: conformal risk control (Angelopoulos et al., arXiv 2208.02814, theorem 1). Of other videos it says
//! nothing.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::solver::SolverKind;

/// Version of the format. It grows when a field changes its meaning or goes away.
pub const VERSION: u32 = 2;

/// The share of videos that a promise holds for.
pub const SHARE: f64 = 0.95;
/// With fewer videos the worst of them is no promise for that share: `floor(0.05 (n + 1))` is 0.
pub const VIDEOS_MIN: usize = 19;

/// What closeness is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display, strum::EnumString)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Closeness {
    /// PSNR of the frames against those of the uncached video, in dB: at least.
    Psnr,
    /// Relative error of the velocities that were approximated, summed over the noise level, as a replay predicts it:
    /// at most.
    Error,
}

impl Closeness {
    /// A number that is larger where videos are closer, and about straight over the logarithm of the threshold. What is
    /// closer than can be seen counts as just that close, so that videos without a difference do not make a mean.
    fn score(self, value: f64) -> f64 {
        match self {
            Closeness::Psnr => value.min(70.0),
            Closeness::Error => -value.max(1e-6).ln(),
        }
    }

    /// The closeness that has a score.
    fn of_score(self, score: f64) -> f64 {
        match self {
            Closeness::Psnr => score,
            Closeness::Error => (-score).exp(),
        }
    }

    /// To two digits behind the point, or to three in all; never closer than it is.
    fn rounded(self, value: f64) -> f64 {
        let unit = match self {
            Closeness::Psnr => 0.01,
            Closeness::Error => 10f64.powf(value.log10().floor() - 2.0),
        };
        let units = value / unit;
        let whole = if self == Closeness::Psnr { (units + 1e-9).floor() } else { (units - 1e-9).ceil() };
        format!("{:.9}", whole * unit).parse().unwrap_or(value)
    }

    /// With its unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Closeness::Psnr => format!("{value:.1} dB"),
            Closeness::Error if value > 0.0 && value < 0.001 => format!("an error of {value:.0e}"),
            Closeness::Error => format!("an error of {value:.3}"),
        }
    }

    /// As a bound.
    pub fn bound(self, value: f64) -> String {
        let text = self.text(value);
        match self {
            Closeness::Psnr => format!("{text} or closer"),
            Closeness::Error => format!("{text} or less"),
        }
    }
}

/// How close a method's videos are, by threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Version of the format: [`VERSION`].
    pub promise: u32,
    /// What closeness is told in.
    pub of: Closeness,
    /// The method.
    pub method: String,
    /// Its other options.
    pub options: Map<String, Value>,
    /// How the videos were made; of others it says nothing.
    pub settings: Settings,
    /// How many videos it was measured on.
    pub videos: usize,
    /// By threshold, rising.
    pub thresholds: Vec<Row>,
}

/// What closeness depends on beside the method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Family of models.
    pub family: String,
    /// Its solver.
    pub solver: SolverKind,
    /// Number of steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Shift of the noise schedule. Measurements of before do not say it; then it is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// How large the videos are. Measurements of before do not say it; then it is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
}

/// Size and length of a video. As text: `832x480, 81 frames`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extent { width, height, frames } = self;
        write!(f, "{width}x{height}, {frames} {}", if *frames == 1 { "frame" } else { "frames" })
    }
}

/// What was measured at one threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The threshold.
    pub threshold: f64,
    /// All but one in twenty videos are closer.
    pub bound: f64,
    /// The mean of all videos.
    pub mean: f64,
}

/// What can be promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// The threshold.
    pub threshold: f64,
    /// What may be expected in the mean.
    pub mean: f64,
}

impl Promise {
    /// From measurements: for each threshold, the closeness of every video, in one order.
    ///
    /// # Errors
    /// There are too few videos or thresholds, or not all were measured at all thresholds.
    pub fn measured(
        of: Closeness,
        (method, options): (String, Map<String, Value>),
        settings: Settings,
        mut measured: Vec<(f64, Vec<f64>)>,
    ) -> Result<Promise, String> {
        measured.sort_by(|a, b| a.0.total_cmp(&b.0));
        let videos = measured.first().map_or(0, |(_, found)| found.len());
        if videos < VIDEOS_MIN {
            return Err(format!("{videos} videos: expected {VIDEOS_MIN} or more, 60 are better"));
        }
        if let Some((threshold, found)) = measured.iter().find(|(_, found)| found.len() != videos) {
            return Err(format!("threshold {threshold} has {} videos, others {videos}", found.len()));
        }
        let rank = ((1.0 - SHARE) * (videos + 1) as f64 + 1e-9).floor() as usize;
        let row = |(threshold, found): (f64, Vec<f64>)| {
            let mut scores: Vec<f64> = found.into_iter().map(|value| of.score(value)).collect();
            scores.sort_by(f64::total_cmp);
            let mean = scores.iter().map(|&score| of.of_score(score)).sum::<f64>() / videos as f64;
            Row { threshold, bound: of.rounded(of.of_score(scores[rank - 1])), mean: of.rounded(mean) }
        };
        let thresholds = measured.into_iter().map(row).collect();
        let promise = Promise { promise: VERSION, of, method, options, settings, videos, thresholds };
        promise.check().map(|()| promise)
    }

    /// Reads one that somebody wrote.
    ///
    /// # Errors
    /// The text is none; says why not.
    pub fn from_json(text: &str) -> Result<Promise, String> {
        let promise: Promise =
            serde_json::from_str(text).map_err(|e| format!("is no measurement of closeness by threshold: {e}"))?;
        promise.check().map(|()| promise)
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", serde_json::json!(self))
    }

    /// Sixteen hexadecimal digits that differ where measurements do.
    pub fn digest(&self) -> String {
        super::curve::digest(&self.to_json())
    }

    /// The largest threshold that keeps a promise.
    ///
    /// # Errors
    /// None does; says what can be promised.
    pub fn keeps(&self, asked: f64) -> Result<Kept, String> {
        let wanted = self.of.score(asked);
        // What a threshold promises, no larger one exceeds.
        let promised: Vec<f64> = self
            .thresholds
            .iter()
            .scan(f64::INFINITY, |least, row| {
                *least = least.min(self.of.score(row.bound));
                Some(*least)
            })
            .collect();
        // Closer than what counts as the closest, nothing was measured.
        let is_told = (self.of.of_score(wanted) - asked).abs() <= 1e-9 * asked.abs();
        let kept = promised.iter().rposition(|&least| least >= wanted - 1e-9);
        let Some(last) = kept.filter(|_| is_told) else {
            return Err(format!(
                "no closer than {} can be promised; uncached videos are",
                self.of.text(self.closest())
            ));
        };
        let row = &self.thresholds[last];
        let Some(next) = self.thresholds.get(last + 1) else {
            return Ok(Kept { threshold: row.threshold, mean: row.mean });
        };
        // On a line over the logarithm of the threshold.
        let part = ((promised[last] - wanted) / (promised[last] - promised[last + 1])).clamp(0.0, 1.0);
        let between = |from: f64, to: f64| from + part * (to - from);
        let threshold = between(row.threshold.ln(), next.threshold.ln()).exp();
        let mean = self.of.of_score(between(self.of.score(row.mean), self.of.score(next.mean)));
        Ok(Kept { threshold, mean })
    }

    /// The closest that can be promised.
    pub fn closest(&self) -> f64 {
        self.thresholds.first().map_or(f64::NAN, |row| row.bound)
    }

    fn check(&self) -> Result<(), String> {
        let rises = self.thresholds.windows(2).all(|pair| pair[0].threshold < pair[1].threshold);
        let sane = self.thresholds.iter().all(|row| {
            row.threshold > 0.0 && [row.threshold, row.bound, row.mean].iter().all(|value| value.is_finite())
        });
        match (self.promise, self.thresholds.len(), rises && sane) {
            (VERSION, 2.., true) => Ok(()),
            (VERSION, 2.., false) => Err("expected thresholds that rise from above 0, and finite numbers".to_string()),
            (VERSION, few, _) => Err(format!("has {few} thresholds, expected 2 or more")),
            (other, ..) => Err(format!("has version {other}, this program knows {VERSION}")),
        }
    }
}

const SHIPPED: &str = include_str!("calibration/promises.json");

/// What comes with the program: measurements of the built-in model, of a method or of the first there is.
pub fn shipped(of: Closeness, method: Option<&str>, family: &str) -> Option<Promise> {
    let all: Vec<Promise> = serde_json::from_str(SHIPPED).unwrap_or_default();
    all.into_iter().find(|promise| {
        promise.of == of && promise.settings.family == family && method.is_none_or(|method| method == promise.method)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let extent = Some(Extent { width: 64, height: 48, frames: 17 });
        Settings {
            family: "f".to_string(),
            solver: SolverKind::UniPc,
            steps: 50,
            guidance: 4.0,
            shift: Some(3.0),
            extent,
        }
    }

    /// 39 videos: at the first threshold 41 to 79 dB, 10 less at ten times the threshold.
    fn promise() -> Promise {
        let of = |first: usize| (first..first + 39).map(|psnr| psnr as f64).collect::<Vec<f64>>();
        let rows = vec![(0.1, of(31)), (0.01, of(41)), (1.0, of(35))];
        Promise::measured(Closeness::Psnr, ("m".to_string(), Map::new()), settings(), rows).unwrap()
    }

    #[test]
    fn the_promise_is_a_low_rank() {
        // floor(0.05 * 40) = 2: one of the 39 may be worse
        let rows: Vec<(f64, f64)> = promise().thresholds.iter().map(|row| (row.threshold, row.bound)).collect();
        assert_eq!(rows, [(0.01, 42.0), (0.1, 32.0), (1.0, 36.0)]);
        let again = Promise::from_json(&promise().to_json()).unwrap();
        assert_eq!(again, promise());
        assert_eq!(again.settings.extent.unwrap().to_string(), "64x48, 17 frames");
        let mut before = serde_json::json!(promise());
        before["settings"].as_object_mut().unwrap().remove("extent");
        assert_eq!(Promise::from_json(&before.to_string()).unwrap().settings.extent, None, "an older file");
    }

    #[test]
    fn the_largest_threshold_that_keeps_it() {
        let at = |psnr: f64| promise().keeps(psnr).map(|kept| kept.threshold);
        assert!((at(42.0).unwrap() - 0.01).abs() < 1e-12);
        assert!((at(37.0).unwrap().log10() + 1.5).abs() < 1e-12, "half way between 42 and 32 dB");
        assert!((at(32.0).unwrap() - 1.0).abs() < 1e-12, "the last one cannot promise more than the one before");
        assert_eq!(at(10.0), Ok(1.0));
        assert!(at(43.0).unwrap_err().contains("no closer than 42.0 dB"), "{:?}", at(43.0));
    }

    #[test]
    fn nothing_is_closer_than_what_counts_as_the_closest() {
        let of = |of: Closeness, same: f64| {
            let rows = vec![(0.1, vec![same; 19]), (0.2, vec![same; 19])];
            Promise::measured(of, ("m".to_string(), Map::new()), settings(), rows).unwrap()
        };
        let (psnr, error) = (of(Closeness::Psnr, 90.0), of(Closeness::Error, 0.0));
        assert_eq!((psnr.keeps(70.0).unwrap().threshold, error.keeps(1e-6).unwrap().threshold), (0.2, 0.2));
        assert!(psnr.keeps(90.0).unwrap_err().contains("no closer than 70.0 dB can be promised"));
        assert!(error.keeps(1e-7).unwrap_err().contains("no closer than an error of 1e-6 can be promised"));
    }

    #[test]
    fn a_smaller_error_is_closer() {
        // 39 videos, errors of 0.001 to 0.039 at the first threshold, ten times as much at the second.
        let of = |times: f64| (1..40).map(|i| i as f64 * 0.001 * times).collect::<Vec<f64>>();
        let rows = vec![(0.01, of(1.0)), (1.0, of(10.0))];
        let promise = Promise::measured(Closeness::Error, ("m".to_string(), Map::new()), settings(), rows).unwrap();
        let rows: Vec<[f64; 3]> = promise.thresholds.iter().map(|row| [row.threshold, row.bound, row.mean]).collect();
        assert_eq!(rows, [[0.01, 0.038, 0.02], [1.0, 0.38, 0.2]], "one of the 39 may be worse");
        let kept = promise.keeps(0.12).unwrap(); // half way between 0.038 and 0.38
        assert!((kept.threshold - 0.1).abs() < 1e-3 && (kept.mean - 0.0632).abs() < 1e-3, "{kept:?}");
        assert!(promise.keeps(0.037).unwrap_err().contains("no closer than an error of 0.038"));
    }

    #[test]
    fn too_little_is_refused() {
        let of = |rows: Vec<(f64, Vec<f64>)>| {
            Promise::measured(Closeness::Psnr, ("m".to_string(), Map::new()), settings(), rows)
        };
        assert!(of(vec![]).is_err());
        assert!(of(vec![(0.1, vec![40.0; 18]), (0.2, vec![40.0; 18])]).unwrap_err().contains("18 videos"));
        assert!(of(vec![(0.1, vec![40.0; 20]), (0.2, vec![40.0; 19])]).unwrap_err().contains("19 videos, others 20"));
        assert!(of(vec![(0.1, vec![40.0; 20])]).unwrap_err().contains("1 thresholds"));
        assert!(of(vec![(0.1, vec![40.0; 20]), (0.1, vec![39.0; 20])]).unwrap_err().contains("rise"));
        assert!(Promise::from_json("{}").is_err());
    }

    #[test]
    fn what_is_shipped_can_be_read() {
        let all: Vec<Promise> = serde_json::from_str(SHIPPED).unwrap();
        all.iter().for_each(|promise| promise.check().unwrap());
        let of = Closeness::Psnr;
        assert_eq!(shipped(of, None, "demo").map(|promise| promise.method), Some("stride".to_string()));
        assert_eq!(shipped(of, Some("navicache"), "demo"), None);
        assert_eq!(shipped(of, None, "wan-t2v-14b"), None);
    }
}

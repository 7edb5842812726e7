//! What a comparison found: of every run, and of every method over its runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use navicache_engine::report::{Seconds, Totals};
use navicache_metrics::{METRICS, Metric, PSNR};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::{self, Call, Folder, REFERENCE, Record};
use crate::error::{Error, Result};

/// Everything a folder holds.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    version: u32,
    #[serde(skip)]
    folder: PathBuf,
    /// What the videos show.
    pub prompts: Vec<String>,
    /// Seeds of the noise.
    pub seeds: Vec<u64>,
    /// Of every method, in the order of the plan.
    pub methods: Vec<Summary>,
    /// What the reader should know of the numbers.
    pub warnings: Vec<String>,
    /// The commands that made it, where they are known.
    pub calls: Vec<Call>,
    /// Every run that is done.
    pub runs: Vec<Run>,
}

/// One video.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// What it shows.
    pub prompt: String,
    /// Seed of its noise.
    pub seed: u64,
    /// Its method, as given.
    pub method: String,
    /// Its file, within the folder.
    pub video: String,
    /// Its report (docs/report.md), with `compared` (as `navicache metrics --json`) and `blocks`.
    pub report: Value,
    /// What of it is summed up.
    #[serde(skip)]
    pub measured: Measured,
}

/// The part of a record that summaries and plots are made of.
#[derive(Debug, Clone, Deserialize)]
pub struct Measured {
    /// What ran, a character a branch, a bar after each step.
    pub strip: String,
    totals: Totals,
    compared: Option<Compared>,
}

#[derive(Debug, Clone, Deserialize)]
struct Compared {
    psnr: Mean,
    psnr_of_video: f64,
    motion_kept: Option<f64>,
    /// The other metrics among other things, by their keys.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Compared {
    /// The mean of a metric other than PSNR, where it was measured.
    fn mean(&self, metric: &Metric) -> Option<f64> {
        self.rest.get(metric.key)?["mean"].as_f64()
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Mean {
    mean: f64,
}

/// A method over all its runs. Measurements are means over frames, then over videos; absent where there is nothing to
/// compare.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// As given.
    pub method: String,
    /// How many runs are done.
    pub runs: usize,
    /// Seconds of denoising of the uncached runs over those of the same runs with the method.
    pub speedup: Option<f64>,
    /// Units (parts of transformer blocks) that were computed, as a share of those of the uncached runs.
    pub work: f64,
    /// Forwards (a branch of a step) that were computed, computed in part, and reused.
    pub forwards: [usize; 3],
    /// Seconds of a video.
    pub seconds: Seconds,
    /// dB; of frames, then the mean (VideoSys, NaviCache).
    pub psnr: Option<f64>,
    /// The same of the worst video.
    pub psnr_worst: Option<f64>,
    /// Standard deviation of the videos' PSNR, dB; of two videos or more.
    pub psnr_deviation: Option<f64>,
    /// dB; one error over the video (EasyCache).
    pub psnr_of_video: Option<f64>,
    /// The other metrics by their keys, where they were measured.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, Option<f64>>,
    /// Motion over that of the uncached video.
    pub motion_kept: Option<f64>,
    /// Most bytes that the method kept between steps.
    pub store_bytes: u64,
}

impl Results {
    /// Reads what a folder holds.
    pub fn read(folder: &Path) -> Result<Self> {
        Results::of(&Folder::read(folder)?)
    }

    pub(super) fn of(folder: &Folder) -> Result<Self> {
        let plan = folder.plan();
        let mut runs = Vec::new();
        for prompt in &plan.prompts {
            for &seed in &plan.seeds {
                for method in &plan.methods {
                    let record = folder.record(prompt, seed, method);
                    if record.exists() {
                        runs.push(Run::new(prompt, seed, method, &record)?);
                    }
                }
            }
        }
        if runs.is_empty() {
            let reason = "no run is done yet; `navicache compare` with the same folder goes on".to_string();
            return Err(Error::file(folder.root(), reason));
        }
        let methods: Vec<Summary> = plan.methods.iter().filter_map(|method| Summary::of(method, &runs)).collect();
        Ok(Results {
            version: folder::VERSION,
            folder: folder.root().to_path_buf(),
            prompts: plan
                .prompts
                .iter()
                .filter(|prompt| runs.iter().any(|run| run.prompt == **prompt))
                .cloned()
                .collect(),
            seeds: plan.seeds.iter().filter(|seed| runs.iter().any(|run| run.seed == **seed)).copied().collect(),
            warnings: disturbed(&methods, &runs),
            calls: plan.calls.clone(),
            methods,
            runs,
        })
    }

    /// The folder they are of.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The runs of a method.
    pub fn of_method<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.method == method)
    }

    /// How much faster a run was than the uncached one.
    pub fn speedup(&self, run: &Run) -> Option<f64> {
        speedup(&[run], &self.runs)
    }
}

impl Run {
    pub(super) fn new(prompt: &str, seed: u64, method: &str, record: &Record) -> Result<Self> {
        let report = record.read()?;
        let measured = Measured::deserialize(&report)
            .map_err(|e| Error::file(record.video().with_extension("json"), format!("not the record of a run: {e}")))?;
        let (prompt, method) = (prompt.to_string(), method.to_string());
        Ok(Run { prompt, seed, method, video: record.link(), report, measured })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.measured.strip.matches('|').count()
    }

    /// Share of the units that was computed.
    pub fn work(&self) -> f64 {
        let Totals { units_computed, units_reused, .. } = self.measured.totals;
        units_computed as f64 / (units_computed + units_reused).max(1) as f64
    }

    /// Wall-clock seconds.
    pub fn seconds(&self) -> &Seconds {
        &self.measured.totals.seconds
    }

    /// dB, mean over frames; absent for the reference.
    pub fn psnr(&self) -> Option<f64> {
        self.measured.compared.as_ref().map(|compared| compared.psnr.mean)
    }

    fn same_video(&self, other: &Run) -> bool {
        self.prompt == other.prompt && self.seed == other.seed
    }
}

impl Summary {
    /// The metrics beside PSNR, which is told in more than one way.
    pub fn other_metrics() -> impl Iterator<Item = &'static Metric> {
        METRICS.iter().copied().filter(|metric| metric.key != PSNR.key)
    }

    /// A metric's mean, where it was measured.
    pub fn get(&self, metric: &Metric) -> Option<f64> {
        if metric.key == PSNR.key { self.psnr } else { *self.metrics.get(metric.key)? }
    }

    fn of(method: &str, all: &[Run]) -> Option<Self> {
        let runs: Vec<&Run> = all.iter().filter(|run| run.method == method).collect();
        if runs.is_empty() {
            return None;
        }
        let totals = || runs.iter().map(|run| &run.measured.totals);
        let sum = |value: fn(&Totals) -> usize| totals().map(value).sum::<usize>();
        let seconds = |value: fn(&Seconds) -> f64| totals().map(|t| value(&t.seconds)).sum::<f64>() / runs.len() as f64;
        let compared = |value: &dyn Fn(&Compared) -> Option<f64>| -> Vec<f64> {
            runs.iter().filter_map(|run| value(run.measured.compared.as_ref()?)).collect()
        };
        let mean = |value: &dyn Fn(&Compared) -> Option<f64>| mean(&compared(value));
        Some(Summary {
            method: method.to_string(),
            runs: runs.len(),
            speedup: speedup(&runs, all),
            work: sum(|t| t.units_computed) as f64 / units_in_full(&runs, all).max(1) as f64,
            forwards: [sum(|t| t.forwards_computed), sum(|t| t.forwards_mixed), sum(|t| t.forwards_reused)],
            seconds: Seconds {
                load: seconds(|s| s.load),
                text: seconds(|s| s.text),
                denoise: seconds(|s| s.denoise),
                decode: seconds(|s| s.decode),
                write: seconds(|s| s.write),
                total: seconds(|s| s.total),
            },
            psnr: mean(&|c| Some(c.psnr.mean)),
            psnr_worst: compared(&|c| Some(c.psnr.mean)).into_iter().min_by(f64::total_cmp),
            psnr_deviation: deviation(&compared(&|c| Some(c.psnr.mean))),
            psnr_of_video: mean(&|c| Some(c.psnr_of_video)),
            metrics: Summary::other_metrics().map(|metric| (metric.key, mean(&|c| c.mean(metric)))).collect(),
            motion_kept: mean(&|c| c.motion_kept),
            store_bytes: totals().map(|totals| totals.store_bytes).max().unwrap_or(0),
        })
    }
}

/// Units of the uncached runs of the same videos; where one is missing, of the run itself.
fn units_in_full(runs: &[&Run], all: &[Run]) -> usize {
    let in_full = |run: &Run| run.measured.totals.units_computed + run.measured.totals.units_reused;
    let reference =
        |run: &Run| all.iter().find(|other| other.method == REFERENCE && other.same_video(run)).map(in_full);
    runs.iter().map(|run| reference(run).unwrap_or_else(|| in_full(run))).sum()
}

/// How much of a difference of times is chance.
const CHANCE: f64 = 1.3;

/// Signs that something else kept the machine busy: uncached runs do the same work, and reuse saves no more time than
/// work.
fn disturbed(methods: &[Summary], runs: &[Run]) -> Vec<String> {
    let mut warnings = Vec::new();
    let uncached = || runs.iter().filter(|run| run.method == REFERENCE).map(|run| run.seconds().denoise);
    let (least, most) = (uncached().fold(f64::INFINITY, f64::min), uncached().fold(0.0, f64::max));
    if most > CHANCE * least {
        warnings.push(format!(
            "the machine was busy: uncached runs of the same work took from {least:.1} to {most:.1} s; trust the share of work more than the speed-ups"
        ));
    }
    for Summary { method, speedup, work, .. } in methods {
        if let Some(speedup) = speedup.filter(|speedup| speedup * work > CHANCE) {
            warnings.push(format!(
                "the machine was busy: {method} computed {:.0} % of the work, which does not explain {speedup:.2} times the speed",
                100.0 * work
            ));
        }
    }
    warnings
}

/// Seconds of denoising, uncached over these, of the videos that have both.
fn speedup(runs: &[&Run], all: &[Run]) -> Option<f64> {
    let reference = |run: &Run| all.iter().find(|other| other.method == REFERENCE && other.same_video(run));
    let pairs = runs.iter().filter_map(|run| Some((reference(run)?.seconds().denoise, run.seconds().denoise)));
    let (before, after) = pairs.fold((0.0, 0.0), |(a, b), (before, after)| (a + before, b + after));
    (after > 0.0).then(|| before / after)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// That of a sample: over one less than there are.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_that_of_a_sample() {
        assert_eq!(deviation(&[40.0, 42.0, 44.0]), Some(2.0));
        assert_eq!((deviation(&[40.0]), deviation(&[])), (None, None));
    }
}

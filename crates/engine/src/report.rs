//! What a run did and cost, as JSON. The fields are the same whatever the method; docs/report.md describes them.

use std::collections::BTreeMap;

use navicache_control::cache::promise::Closeness;
use navicache_control::guidance::Branch;
use navicache_control::strip::{Ran, Strip};
use navicache_replay::trace::Stack;
use serde::{Deserialize, Serialize};

use navicache_control::cache::watch::Alarm;
use navicache_control::cache::{Method, Run, Scope, StepRecord};
use navicache_control::schedule::Step;

use crate::request::Resolved;

/// Version of the format. It grows when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Format version: [`VERSION`].
    pub version: u32,
    /// Name or path of the model, as given.
    pub model: String,
    /// The family of models that its presets are looked up by.
    pub family: String,
    /// The request with every default filled in.
    pub request: Resolved,
    /// The cache method with all its options.
    pub cache: serde_json::Value,
    /// The branches of every step, in order.
    pub branches: Vec<Branch>,
    /// The blocks of the model, from the first to the last.
    pub stacks: Vec<Stack>,
    /// One entry a step.
    pub steps: Vec<StepReport>,
    /// What ran: `S` computed, `.` reused, `m` mixed; a character a branch, a bar after each step.
    pub strip: String,
    /// Sums.
    pub totals: Totals,
    /// What became of the target, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetReport>,
    /// The alarms that guards raised.
    pub guards: Vec<Alarm>,
    /// What the user was warned of.
    pub warnings: Vec<String>,
    /// Where it ran.
    pub machine: Machine,
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// As it was asked for.
    pub asked: String,
    /// The same for a run that computes the same steps, bit for bit: with a time it is the budgets that the clock led
    /// to.
    pub again: String,
    /// The curve that it was met with.
    pub curve: CurveUsed,
    /// Steps to be computed, in equivalents of whole ones, each number from a step on.
    pub budgets: Vec<(usize, f64)>,
    /// Steps that were computed, likewise.
    pub computed: f64,
    /// All work over the work that was computed.
    pub speedup: f64,
    /// Whether as much was computed as the last budget asks for, to a step. Of closeness nobody can tell without the
    /// uncached video.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// What was promised, where closeness was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promise: Option<PromiseReport>,
}

/// What a promise of closeness says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromiseReport {
    /// What closeness is told in.
    pub of: Closeness,
    /// The closeness that was asked for: dB of PSNR against the uncached video, at least; or an error, at most.
    pub asked: f64,
    /// The share of videos that it holds for, if they are like those that it was measured on.
    pub share: f64,
    /// What may be expected in the mean.
    pub mean: f64,
}

/// Which curve it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurveUsed {
    /// What it was measured on.
    pub family: String,
    /// How many videos that was.
    pub videos: usize,
    /// [`Curve::digest`](navicache_control::cache::curve::Curve::digest)
    pub digest: String,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// From 0.
    pub index: usize,
    /// The timestep that the model is conditioned on, 0 to 1000.
    pub timestep: f64,
    /// The noise level, 0 to 1.
    pub sigma: f64,
    /// Wall-clock seconds, deciding and solving included.
    pub seconds: f64,
    /// The method's threshold at this step, where a target or a guard moves it; 0 computes the step, the largest
    /// number there is reuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// By branch name: `cond`, `uncond`.
    pub branches: BTreeMap<String, BranchReport>,
}

impl StepReport {
    /// Of a step of a run, under a policy with a cut of so many spans.
    ///
    /// * `seconds` - that the step took
    /// * `of_branches` - that each of its branches took, in order
    pub fn of(run: &Run, spans: usize, record: &StepRecord, seconds: f64, of_branches: &[f64]) -> Self {
        let Step { timestep, sigma } = run.steps[record.step];
        let mut branches = BTreeMap::new();
        for (index, branch) in record.branches.iter().enumerate() {
            let is_of = |scope: Scope| match scope {
                Scope::Step => index == 0,
                Scope::Branch(b) | Scope::Span { branch: b, .. } => b == branch.branch,
            };
            let seen = record.measured.iter().filter(|(scope, ..)| is_of(*scope)).map(|(scope, quantity, value)| {
                let label = match scope {
                    Scope::Span { span, .. } if spans > 1 => format!("[{span}]"),
                    _ => String::new(),
                };
                (quantity.name() + &label, *value)
            });
            let report = BranchReport {
                decision: branch.ran(),
                units_computed: branch.computed(),
                units_reused: branch.units.len() - branch.computed(),
                units: (branch.ran() == Ran::Mixed)
                    .then(|| branch.units.iter().map(|&ran| if ran { 'S' } else { '.' }).collect()),
                seconds: of_branches.get(index).copied().unwrap_or_default(),
                seen: seen.collect(),
            };
            branches.insert(branch.branch.name().into_owned(), report);
        }
        let threshold = record.threshold;
        StepReport { index: record.step, timestep: timestep.0, sigma: sigma.0, seconds, threshold, branches }
    }
}

/// One branch of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BranchReport {
    /// `compute`, `reuse` or `mixed`.
    pub decision: Ran,
    /// Units (parts of transformer blocks) that ran.
    pub units_computed: usize,
    /// Units that did not.
    pub units_reused: usize,
    /// Which of the units ran, `S` or `.` each, in the order they run; absent where all did, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<String>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// The measured quantities that decided, and those that were learnt from; `[n]` behind a name: of the n-th span of
    /// blocks.
    pub seen: BTreeMap<String, f64>,
}

/// Sums over the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Forwards (a branch of a step) that were computed, in whole.
    pub forwards_computed: usize,
    /// Forwards that were approximated.
    pub forwards_reused: usize,
    /// Forwards of which a part was computed.
    pub forwards_mixed: usize,
    /// Units (parts of transformer blocks) that were computed.
    pub units_computed: usize,
    /// Units that were not.
    pub units_reused: usize,
    /// Steps of which every branch was reused.
    pub steps_reused: usize,
    /// Bytes that caching keeps at most: what values are approximated from, and what changes are measured against.
    pub store_bytes: u64,
    /// Wall-clock seconds by stage.
    pub seconds: Seconds,
    /// Most memory the process held resident, in bytes; absent where the system does not say.
    pub peak_memory_bytes: Option<u64>,
}

impl Totals {
    /// Of a run's steps; what they do not tell is 0 or absent.
    pub fn of(strip: &Strip, steps: &[StepReport]) -> Self {
        let branches = || steps.iter().flat_map(|step| step.branches.values());
        Totals {
            forwards_computed: strip.count(Ran::Computed),
            forwards_reused: strip.count(Ran::Reused),
            forwards_mixed: strip.count(Ran::Mixed),
            units_computed: branches().map(|b| b.units_computed).sum(),
            units_reused: branches().map(|b| b.units_reused).sum(),
            steps_reused: strip.steps_reused(),
            ..Totals::default()
        }
    }
}

/// Wall-clock seconds by stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading weights.
    pub load: f64,
    /// Tokenizer and text encoder.
    pub text: f64,
    /// All steps.
    pub denoise: f64,
    /// VAE.
    pub decode: f64,
    /// Encoding and writing the video file.
    pub write: f64,
    /// The whole run.
    pub total: f64,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Threads used.
    pub threads: usize,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Format that the transformer's matrices are kept in; `stored` is the files' own.
    pub dtype: String,
    /// What the VAE's convolutions multiplied: `f32` or `bf16`.
    pub vae: String,
    /// Instruction set that products on the CPU ran on: `amx`, `avx512bf16`, `avx512`, `avx2`, `neon` or `plain`.
    pub kernels: String,
    /// Version of this program.
    pub navicache: String,
}

impl Report {
    /// Reads one that was written.
    pub fn read(path: &std::path::Path) -> crate::Result<Self> {
        let text = navicache_media::read_text(path)?;
        serde_json::from_str(&text).map_err(|e| crate::Error::file(path, format!("not the report of a run: {e}")))
    }

    /// Writes it as JSON, whole or not at all.
    pub fn save(&self, path: &std::path::Path) -> crate::Result<()> {
        Ok(crate::WholeFile::create(path)?.finish_with(self.to_json().as_bytes())?)
    }

    /// The JSON text, with a line end.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        format!("{value:#}\n")
    }

    /// Estimated seconds that reuse saved: see [`seconds_saved`].
    pub fn seconds_saved(&self) -> f64 {
        seconds_saved(&self.steps)
    }
}

/// Estimated seconds that reuse saved: every branch of every step at the mean cost of the computed ones, less what
/// they took.
pub fn seconds_saved(steps: &[StepReport]) -> f64 {
    let branches = || steps.iter().flat_map(|step| step.branches.values());
    let computed: Vec<f64> = branches().filter(|b| b.units_reused == 0).map(|b| b.seconds).collect();
    if computed.is_empty() {
        return 0.0;
    }
    let mean = computed.iter().sum::<f64>() / computed.len() as f64;
    (mean * branches().count() as f64 - branches().map(|b| b.seconds).sum::<f64>()).max(0.0)
}

/// The method with its options, as in reports.
pub fn described(method: &dyn Method) -> serde_json::Value {
    let mut options = method.options();
    if let Some(fields) = options.as_object_mut() {
        fields.insert("method".to_string(), method.name().into());
    }
    options
}

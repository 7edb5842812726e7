//! `scheduler/scheduler_config.json` of a Diffusers folder: which solver the model was published with, and its shift.

use navicache_control::diffusion::Diffusion;
use navicache_control::schedule::{Schedule, flow_even};
use navicache_control::solver::SolverKind;
use navicache_models::keys::{self, Keys, Rule};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, Result};
use navicache_weights::Folder;

/// Timesteps that models are trained with.
const TRAIN_TIMESTEPS: usize = 1000;
/// Most of them.
const TIMESTEPS_MAX: usize = 1 << 20;
const FILE: &str = "scheduler/scheduler_config.json";

/// What the file says that is used here. Absent keys take the defaults of the reference classes.
#[derive(Debug, Clone, Deserialize)]
struct File {
    num_train_timesteps: Option<usize>,
    flow_shift: Option<f64>,
    shift: Option<f64>,
    snr_shift_scale: Option<f64>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
}

/// A class of Diffusers: its solver, and what its keys may say.
struct Class {
    name: &'static str,
    solver: SolverKind,
    keys: Keys,
}

/// What keys do follows from `tools/golden/scheduler_keys.py`, which tries them all.
const CLASSES: [Class; 5] = [
    Class {
        name: "UniPCMultistepScheduler",
        solver: SolverKind::UniPc,
        keys: &[
            (&["num_train_timesteps", "flow_shift"], Rule::Read),
            (&["use_flow_sigmas"], Rule::Stated("true")),
            (&["prediction_type"], Rule::Stated("\"flow_prediction\"")),
            (&["solver_order"], Rule::Only(&["2"])),
            (&["solver_type"], Rule::Only(&["\"bh2\"", "\"midpoint\"", "\"heun\"", "\"logrho\""])),
            (&["final_sigmas_type"], Rule::Only(&["\"zero\""])),
            (&["lower_order_final", "predict_x0"], Rule::Only(&["true"])),
            (&["disable_corrector"], Rule::Only(&["[]"])),
            (&["solver_p"], Rule::Only(&["null"])),
            (&["shift_terminal"], Rule::Only(&["null", "0"])),
            (&["thresholding", "use_dynamic_shifting"], Rule::Only(&["false"])),
            (&["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"], Rule::Only(&["false"])),
            (&["beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"], Rule::Any),
            (&["dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"], Rule::Any),
            (&["timestep_spacing", "steps_offset", "sigma_min", "sigma_max"], Rule::Any),
        ],
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        solver: SolverKind::DpmPp2M,
        keys: &[
            (&["num_train_timesteps", "flow_shift"], Rule::Read),
            (&["use_flow_sigmas"], Rule::Stated("true")),
            (&["prediction_type"], Rule::Stated("\"flow_prediction\"")),
            (&["algorithm_type"], Rule::Only(&["\"dpmsolver++\""])),
            (&["solver_order"], Rule::Only(&["2"])),
            (&["solver_type"], Rule::Only(&["\"midpoint\"", "\"logrho\"", "\"bh1\"", "\"bh2\""])),
            (&["final_sigmas_type"], Rule::Only(&["\"zero\""])),
            (&["thresholding", "use_dynamic_shifting", "use_lu_lambdas"], Rule::Only(&["false"])),
            (&["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"], Rule::Only(&["false"])),
            (&["beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"], Rule::Any),
            (&["dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"], Rule::Any),
            (&["lower_order_final", "euler_at_final", "lambda_min_clipped", "variance_type"], Rule::Any),
            (&["timestep_spacing", "steps_offset"], Rule::Any),
        ],
    },
    Class {
        name: "FlowMatchEulerDiscreteScheduler",
        solver: SolverKind::Euler,
        keys: &[
            (&["num_train_timesteps", "shift"], Rule::Read),
            (&["use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"], Rule::Only(&["false"])),
            (&["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"], Rule::Only(&["false"])),
            (&["shift_terminal"], Rule::Only(&["null", "0"])),
            (&["base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"], Rule::Any),
        ],
    },
    Class { name: "CogVideoXDDIMScheduler", solver: SolverKind::Ddim, keys: OF_COGVIDEOX },
    Class { name: "CogVideoXDPMScheduler", solver: SolverKind::DpmPp2MSde, keys: OF_COGVIDEOX },
];

/// Keys of both classes of CogVideoX.
const OF_COGVIDEOX: Keys = &[
    (&["num_train_timesteps", "snr_shift_scale", "beta_start", "beta_end"], Rule::Read),
    (&["prediction_type"], Rule::Stated("\"v_prediction\"")),
    (&["timestep_spacing"], Rule::Stated("\"trailing\"")),
    (&["rescale_betas_zero_snr"], Rule::Stated("true")),
    (&["beta_schedule"], Rule::Only(&["\"scaled_linear\""])),
    (&["trained_betas"], Rule::Only(&["null"])),
    (&["set_alpha_to_one"], Rule::Only(&["true"])),
    (&["clip_sample", "clip_sample_range", "sample_max_value", "steps_offset"], Rule::Any),
];

/// What the samples of a model are along the way, which decides about the classes that fit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// A line from data to noise; the model predicts the velocity.
    Flow,
    /// A diffusion; the model predicts v.
    Diffusion,
}

impl Class {
    fn path(&self) -> Path {
        match self.solver {
            SolverKind::Ddim | SolverKind::DpmPp2MSde => Path::Diffusion,
            SolverKind::UniPc | SolverKind::DpmPp2M | SolverKind::Euler => Path::Flow,
        }
    }
}

/// The schedule and solver that a pipeline was published with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scheduler {
    pub solver: SolverKind,
    pub shift: f64,
    pub train_timesteps: usize,
    pub grid: Grid,
}

/// Where the steps lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Grid {
    /// As the solver's reference class has them.
    OfSolver,
    /// Those of Euler at even distances before the shift, as the authors of some models sample.
    Even,
    /// On a diffusion, whose shift is that of its signal-to-noise ratio.
    Diffusion(Betas),
}

/// How much noise a diffusion adds in its first and in its last training timestep, in ratios of variances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Betas {
    pub start: f64,
    pub end: f64,
}

impl Default for Betas {
    /// Those of CogVideoX.
    fn default() -> Self {
        Betas { start: 0.00085, end: 0.012 }
    }
}

impl Scheduler {
    /// What a model was published with whose files do not say so.
    pub fn published(solver: SolverKind, shift: f64) -> Self {
        Scheduler { solver, shift, train_timesteps: TRAIN_TIMESTEPS, grid: Grid::OfSolver }
    }

    /// Reads the file; a class of another path, and a key that would sample differently from what is done here or that
    /// nobody knows, are refused.
    pub fn read(folder: &Folder, path: Path) -> Result<Self> {
        let text = String::from_utf8_lossy(&folder.bytes(FILE)?).into_owned();
        let unreadable = |e: serde_json::Error| Error::file(folder.path(FILE), e.to_string());
        let fields: Map<String, Value> = serde_json::from_str(&plain_json(&text)).map_err(unreadable)?;
        let wrong = |key: &str, found: &str, expected: &str| {
            Error::file(folder.path(FILE), format!("{key}: expected {expected}, found {found}"))
        };
        let name = fields.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
        let known = || CLASSES.iter().filter(|class| class.path() == path);
        let class = known().find(|class| class.name == name).ok_or_else(|| {
            let names: Vec<&str> = known().map(|class| class.name).collect();
            wrong("_class_name", name, &names.join(", "))
        })?;
        let unknown = keys::check(&fields, &[class.keys]).map_err(|e| Error::file(folder.path(FILE), e.to_string()))?;
        if let Some(key) = unknown.first() {
            return Err(wrong(key, &fields[key].to_string(), &format!("a key of {name}")));
        }
        let file: File = serde_json::from_value(Value::Object(fields)).map_err(unreadable)?;
        let shift = match class.solver {
            SolverKind::UniPc | SolverKind::DpmPp2M => file.flow_shift.unwrap_or(1.0),
            SolverKind::Euler => file.shift.unwrap_or(1.0),
            SolverKind::Ddim | SolverKind::DpmPp2MSde => file.snr_shift_scale.unwrap_or(3.0),
        };
        let train_timesteps = file.num_train_timesteps.unwrap_or(TRAIN_TIMESTEPS);
        if !(shift > 0.0 && shift.is_finite()) {
            return Err(wrong("shift", &shift.to_string(), "a number above 0"));
        }
        // A diffusion's first and last noise levels are set apart.
        let fewest = if path == Path::Diffusion { 2 } else { 1 };
        if !(fewest..=TIMESTEPS_MAX).contains(&train_timesteps) {
            let expected = format!("{fewest} to {TIMESTEPS_MAX}");
            return Err(wrong("num_train_timesteps", &train_timesteps.to_string(), &expected));
        }
        let grid = match path {
            Path::Flow => Grid::OfSolver,
            Path::Diffusion => {
                let published = Betas::default();
                let start = file.beta_start.unwrap_or(published.start);
                let end = file.beta_end.unwrap_or(published.end);
                if !(0.0 < start && start <= end && end < 1.0) {
                    let expected = "numbers between 0 and 1, the smaller one first";
                    return Err(wrong("beta_start, beta_end", &format!("{start} and {end}"), expected));
                }
                Grid::Diffusion(Betas { start, end })
            }
        };
        Ok(Scheduler { solver: class.solver, shift, train_timesteps, grid })
    }

    /// The same, with Euler's steps at even distances.
    pub fn evenly(self) -> Self {
        Scheduler { grid: Grid::Even, ..self }
    }

    /// That of CogVideoX with a solver, where the files do not say so.
    pub fn of_diffusion(solver: SolverKind, shift: f64) -> Self {
        Scheduler { grid: Grid::Diffusion(Betas::default()), ..Scheduler::published(solver, shift) }
    }

    /// The noise levels that the model was trained with, where it is no flow.
    pub fn diffusion(&self, shift: f64) -> Option<Diffusion> {
        let Grid::Diffusion(Betas { start, end }) = self.grid else { return None };
        Some(Diffusion::scaled_linear(start, end, self.train_timesteps).shifted(shift).to_zero_signal())
    }

    /// The noise levels of a run.
    pub fn schedule(&self, solver: SolverKind, steps: usize, shift: f64) -> Result<Schedule> {
        if let Some(diffusion) = self.diffusion(shift) {
            return Ok(match solver {
                SolverKind::Ddim | SolverKind::DpmPp2MSde => diffusion.trailing_by_whole_strides(steps)?,
                SolverKind::UniPc | SolverKind::DpmPp2M | SolverKind::Euler => diffusion.trailing(steps)?,
            });
        }
        Ok(match (solver, self.grid) {
            (SolverKind::Euler, Grid::Even) => flow_even(steps, shift, self.train_timesteps)?,
            _ => solver.schedule(steps, shift, self.train_timesteps)?,
        })
    }
}

/// Python writes `-Infinity` and the like, which is no JSON: as text instead.
fn plain_json(text: &str) -> String {
    let mut plain = String::new();
    for (i, part) in text.split('"').enumerate() {
        if i > 0 {
            plain.push('"');
        }
        match i % 2 {
            0 => plain.push_str(&part.replace("-Infinity", "\"-inf\"").replace("NaN", "\"nan\"")),
            _ => plain.push_str(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        class: String,
        file: String,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        key: String,
        value: Option<Value>,
        effect: String,
    }

    fn read(keys: &str) -> Result<Scheduler> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        std::fs::write(folder.path().join(FILE), keys).unwrap();
        let path = if keys.contains("CogVideoX") { Path::Diffusion } else { Path::Flow };
        Scheduler::read(&Folder::Disk(folder.path().to_path_buf()), path)
    }

    #[test]
    fn a_class_of_another_path_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        let folder = Folder::Disk(folder.path().to_path_buf());
        for (class, path, expected) in [
            ("CogVideoXDDIMScheduler", Path::Flow, "UniPCMultistepScheduler"),
            ("FlowMatchEulerDiscreteScheduler", Path::Diffusion, "CogVideoXDPMScheduler"),
        ] {
            std::fs::write(folder.path(FILE), format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
            let message = Scheduler::read(&folder, path).unwrap_err().to_string();
            assert!(message.contains(&format!("found {class}")) && message.contains(expected), "{message}");
        }
    }

    /// What the reference samples in the same way is read, and whatever it samples otherwise is read as something else,
    /// or refused by name.
    #[test]
    fn every_key_is_understood_or_refused() {
        /// It changes nothing where a pipeline gives no shift of its own; one day one may.
        const REFUSED_AS_WELL: &str = "use_dynamic_shifting";
        let text = include_str!("../tests/golden/scheduler_keys.json");
        let golden: Vec<Golden> = serde_json::from_str(text).unwrap();
        assert_eq!(golden.len(), 5);
        for Golden { class, file, cases } in golden {
            let base = read(&file).unwrap_or_else(|e| panic!("{class}: {e}"));
            let keys: Map<String, Value> = serde_json::from_str(&plain_json(&file)).unwrap();
            assert!(cases.len() > 20, "{class}");
            for Case { key, value, effect } in cases {
                let mut changed = keys.clone();
                match &value {
                    Some(value) => drop(changed.insert(key.clone(), value.clone())),
                    None => drop(changed.remove(&key)),
                }
                let found = read(&Value::Object(changed).to_string());
                let what = format!("{class} {key} {value:?}: {effect}, {found:?}");
                match (effect.as_str(), found) {
                    ("same", Ok(found)) => assert_eq!(found, base, "{what}"),
                    ("same", Err(_)) => assert_eq!(key, REFUSED_AS_WELL, "{what}"),
                    (_, Ok(found)) => assert_ne!(found, base, "{what}"),
                    (_, Err(error)) => assert!(error.to_string().contains(&key), "{what}"),
                }
            }
            let mut changed = keys;
            changed.insert("eta".to_string(), Value::from(1.0));
            let error = read(&Value::Object(changed).to_string()).unwrap_err().to_string();
            assert!(error.contains("eta: expected a key of"), "{error}");
        }
    }

    #[test]
    fn what_python_writes_for_infinity_is_read() {
        assert_eq!(plain_json(r#"{"a": -Infinity, "b": "-Infinity"}"#), r#"{"a": "-inf", "b": "-Infinity"}"#);
    }
}

//! `scheduler/scheduler_config.json` of a Diffusers folder: which solver the model was published with, and its shift.

use navicache_control::schedule::{Schedule, flow_even};
use navicache_control::solver::SolverKind;
use serde::Deserialize;

use crate::{Error, Result};
use navicache_weights::Folder;

/// Timesteps that models are trained with.
const TRAIN_TIMESTEPS: usize = 1000;
const FILE: &str = "scheduler/scheduler_config.json";

/// What of the file matters here. Absent keys take the defaults of the reference classes.
#[derive(Debug, Clone, Deserialize)]
struct File {
    #[serde(rename = "_class_name")]
    class_name: String,
    num_train_timesteps: Option<usize>,
    flow_shift: Option<f64>,
    shift: Option<f64>,
    prediction_type: Option<String>,
    solver_order: Option<usize>,
    solver_type: Option<String>,
    #[serde(default)]
    use_dynamic_shifting: bool,
    #[serde(default)]
    use_flow_sigmas: bool,
    #[serde(default)]
    use_karras_sigmas: bool,
    #[serde(default)]
    use_exponential_sigmas: bool,
    #[serde(default)]
    use_beta_sigmas: bool,
    #[serde(default)]
    invert_sigmas: bool,
    #[serde(default)]
    stochastic_sampling: bool,
    #[serde(default)]
    disable_corrector: Vec<usize>,
    shift_terminal: Option<f64>,
    final_sigmas_type: Option<String>,
}

/// The schedule and solver that a pipeline was published with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scheduler {
    pub solver: SolverKind,
    pub shift: f64,
    pub train_timesteps: usize,
    pub grid: Grid,
}

/// Where the steps of the solver Euler lie; others have the grids of their reference classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    /// As its reference class has them.
    OfSolver,
    /// At even distances before the shift, as the authors of some models sample.
    Even,
}

impl Scheduler {
    /// What a model was published with whose files do not say so.
    pub fn published(solver: SolverKind, shift: f64) -> Self {
        Scheduler { solver, shift, train_timesteps: TRAIN_TIMESTEPS, grid: Grid::OfSolver }
    }

    /// Reads the file; whatever would sample differently from what is done here is refused.
    pub fn read(folder: &Folder) -> Result<Self> {
        let file: File = folder.json(FILE)?;
        let solver = match file.class_name.as_str() {
            "UniPCMultistepScheduler" => SolverKind::UniPc,
            "DPMSolverMultistepScheduler" => SolverKind::DpmPp2M,
            "FlowMatchEulerDiscreteScheduler" => SolverKind::Euler,
            other => {
                let known = "UniPCMultistepScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler";
                return Err(wrong(folder, "_class_name", other, known));
            }
        };
        let refuse = |field: &str, set: bool| if set { Err(wrong(folder, field, "set", "not set")) } else { Ok(()) };
        refuse("use_dynamic_shifting", file.use_dynamic_shifting)?;
        refuse("use_karras_sigmas", file.use_karras_sigmas)?;
        refuse("use_exponential_sigmas", file.use_exponential_sigmas)?;
        refuse("use_beta_sigmas", file.use_beta_sigmas)?;
        refuse("invert_sigmas", file.invert_sigmas)?;
        refuse("stochastic_sampling", file.stochastic_sampling)?;
        refuse("disable_corrector", !file.disable_corrector.is_empty())?;
        refuse("shift_terminal", file.shift_terminal.is_some_and(|shift| shift != 0.0))?;
        if solver != SolverKind::Euler {
            refuse("use_flow_sigmas = false", !file.use_flow_sigmas)?;
            expect(folder, "prediction_type", file.prediction_type.as_deref(), "flow_prediction")?;
            expect(folder, "final_sigmas_type", file.final_sigmas_type.as_deref(), "zero")?;
            let order = file.solver_order.map(|order| order.to_string());
            expect(folder, "solver_order", order.as_deref(), "2")?;
            let solver_type = if solver == SolverKind::UniPc { "bh2" } else { "midpoint" };
            expect(folder, "solver_type", file.solver_type.as_deref(), solver_type)?;
        }
        let shift = if solver == SolverKind::Euler { file.shift } else { file.flow_shift };
        Ok(Scheduler {
            solver,
            shift: shift.unwrap_or(1.0),
            train_timesteps: file.num_train_timesteps.unwrap_or(TRAIN_TIMESTEPS),
            grid: Grid::OfSolver,
        })
    }

    /// The same, with Euler's steps at even distances.
    pub fn evenly(self) -> Self {
        Scheduler { grid: Grid::Even, ..self }
    }

    /// The noise levels of a run.
    pub fn schedule(&self, solver: SolverKind, steps: usize, shift: f64) -> Result<Schedule> {
        Ok(match (solver, self.grid) {
            (SolverKind::Euler, Grid::Even) => flow_even(steps, shift, self.train_timesteps)?,
            _ => solver.schedule(steps, shift, self.train_timesteps)?,
        })
    }
}

fn expect(folder: &Folder, field: &str, found: Option<&str>, expected: &str) -> Result<()> {
    match found {
        Some(found) if found != expected => Err(wrong(folder, field, found, expected)),
        _ => Ok(()),
    }
}

fn wrong(folder: &Folder, field: &str, found: &str, expected: &str) -> Error {
    Error::file(folder.path(FILE), format!("{field}: expected {expected}, found {found}"))
}

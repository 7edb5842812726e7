//! TeaCache: *Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model* (Liu et al., CVPR 2025, arXiv
//! 2411.19108; code ali-vilab/TeaCache).
//!
//! A signal that is known before the blocks run changes about as the output does. A polynomial, fitted once for each
//! model, turns the one's change into the other's; the changes add up until they reach the threshold.
//!
//! | paper | here |
//! |---|---|
//! | timestep-embedding modulated noisy input | `signal` |
//! | relative L1 distance | its relative change since the step before |
//! | polynomial fit `f` | `coefficients`, highest power first |
//! | `delta` | `threshold` |
//! | `ret_steps` | `warmup_steps` |
//!
//! On Wan the signal is the timestep's embedding (or its projection, in the released `ret` mode), which no prompt
//! changes: the strip is a function of the schedule alone. Every branch decides for itself. The polynomial can be
//! negative; so can the sum.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::approx::FOR_BLOCKS;
use super::path_sum::PathSum;
use super::per_branch::PerBranch;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Subject,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "teacache",
    line: "change of the timestep's embedding or the modulated input, through a fitted polynomial",
    paper: "Liu et al., CVPR 2025, arXiv 2411.19108",
    source: "the released code",
    needs: Some("a polynomial for the model"),
};

options! {
    /// Sum of predicted relative output changes at which a branch is computed again. 0 computes every step.
    threshold: f64,
    /// Polynomial of degree 4: the name of a published one, or five numbers, highest power first.
    coefficients: Coefficients,
    /// What is watched.
    signal: Signal,
    /// Number of initial steps that are always computed.
    #[serde(default = "one")]
    warmup_steps: usize,
    /// Number of final steps that are always computed.
    #[serde(default = "one")]
    last_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the blocks' work is approximated.
    #[serde(default)]
    reuse: Reuse,
}

fn one() -> usize {
    1
}

/// What is known before the blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// The timestep's embedding.
    TimeEmbedding,
    /// Its projection to the modulation of the blocks.
    TimeProjection,
    /// The first block's input, normalised and modulated.
    ModulatedInput,
}

/// A polynomial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "coefficients: expected the name of a model, or five numbers [c4,c3,c2,c1,c0]")]
pub enum Coefficients {
    /// By the model it was fitted for.
    Named(String),
    /// `c4, c3, c2, c1, c0`
    Given([f64; 5]),
}

/// The published polynomials, and that of the demo model.
const CALIBRATION: &str = include_str!("calibration/teacache.json");

impl Coefficients {
    fn numbers(&self) -> Result<[f64; 5], String> {
        let name = match self {
            Coefficients::Given(numbers) => return Ok(*numbers),
            Coefficients::Named(name) => name,
        };
        static TABLE: OnceLock<BTreeMap<String, [f64; 5]>> = OnceLock::new();
        let table = TABLE.get_or_init(|| serde_json::from_str(CALIBRATION).unwrap_or_default());
        table.get(name).copied().ok_or_else(|| {
            let known = table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("coefficients are {name:?}, expected five numbers or one of {known}")
        })
    }
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: self.last_steps, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        // A checked configuration has its numbers; one that was not computes everything.
        let coefficients = self.coefficients.numbers().unwrap_or([f64::NAN; 5]);
        let subject = match self.signal {
            Signal::TimeEmbedding => Subject::TimeEmbedding,
            Signal::TimeProjection => Subject::TimeProjection,
            Signal::ModulatedInput => Subject::ModulatedInput,
        };
        let change = subject.by(Measure::RelativeChangeSinceVisit);
        let question = Question { to_decide: vec![change], to_learn: vec![], to_reuse: vec![self.reuse.into()] };
        let asks = Asks::stack(run, question);
        Box::new(PerBranch::new(run, |_| TeaCache {
            asks: asks.clone(),
            reuse: self.reuse,
            coefficients,
            signal_change: change,
            change: PathSum::new(self.threshold),
        }))
    }

    fn check(&self) -> Result<(), String> {
        self.coefficients.numbers()?;
        self.reuse.check(FOR_BLOCKS)
    }
}

struct TeaCache {
    asks: Asks,
    reuse: Reuse,
    coefficients: [f64; 5],
    signal_change: Quantity,
    change: PathSum,
}

impl Policy for TeaCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, _: At, measured: &Measurements) -> Decision {
        let Some(x) = measured.get(self.signal_change) else { return Decision::Compute };
        let predicted = self.coefficients.iter().fold(0.0, |sum, c| sum * x + c);
        if self.change.add(predicted) { Decision::Reuse(self.reuse.into()) } else { Decision::Compute }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.change.set_threshold(threshold);
        true
    }

    fn computed(&mut self, _: At, _: &Measurements) {
        self.change.reset();
    }
}

//! BWCache, block-wise caching (ICLR 2026): after a computed step, how much all blocks' outputs have changed since the
//! last one decides whether the next steps reuse them.
//!
//! | paper | here |
//! |---|---|
//! | mean relative L1 of block outputs | relative change since the last computed step, mean over blocks |
//! | threshold `delta` | `threshold` |
//! | reuse interval `R` | `run`, a part of the steps |
//!
//! Once it has triggered, the second half of the steps left then is always computed. Written from notes of the paper:
//! its code was not read. Every branch decides for itself.

use super::approx::FOR_BLOCKS;
use super::per_branch::PerBranch;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Subject,
    check_part,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "bwcache",
    line: "change of all blocks' outputs between computed steps",
    paper: "ICLR 2026, BWCache",
    source: "notes of the paper",
    needs: Some("memory for every block's output"),
};

options! {
    /// Mean relative change of the blocks' outputs below which a run of reuse begins. 0 computes every step.
    threshold: f64,
    /// Length of a run, as a part of the steps.
    run: f64,
    /// How the blocks' work is approximated.
    #[serde(default = "output")]
    reuse: Reuse,
}

fn output() -> Reuse {
    Reuse::Output
}

const CHANGE: Quantity = Subject::BlockOutputs.by(Measure::RelativeChangeSinceCompute);

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { last_steps: 1, ..Guard::NONE }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let question = Question { to_decide: vec![], to_learn: vec![CHANGE], to_reuse: vec![self.reuse.into()] };
        let asks = Asks::stack(run, question);
        let steps = run.steps.len();
        Box::new(PerBranch::new(run, |_| BwCache {
            asks: asks.clone(),
            threshold: self.threshold,
            run: (self.run * steps as f64).round() as usize,
            reuse: self.reuse,
            steps,
            left: 0,
            end: None,
        }))
    }

    fn check(&self) -> Result<(), String> {
        check_part("run", self.run, "steps")?;
        self.reuse.check(FOR_BLOCKS)
    }
}

struct BwCache {
    asks: Asks,
    threshold: f64,
    run: usize,
    reuse: Reuse,
    steps: usize,
    /// Steps of the current run that are left.
    left: usize,
    /// The step from which everything is computed, once it has triggered.
    end: Option<usize>,
}

impl Policy for BwCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        if self.left == 0 || self.end.is_some_and(|end| at.step >= end) {
            return Decision::Compute;
        }
        self.left -= 1;
        Decision::Reuse(self.reuse.into())
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        self.left = 0;
        if measured.get(CHANGE).is_some_and(|change| change < self.threshold) {
            self.left = self.run;
            self.end.get_or_insert(at.step + (self.steps - at.step) / 2);
        }
    }
}

//! DiCache (ICLR 2026; code Bujiazi/DiCache): the first block runs at every step as a probe; its output's changes add
//! up until they reach the threshold, and what is reused lies on the line through the last two computed residuals, as
//! far along as the probe is.
//!
//! | paper | here |
//! |---|---|
//! | probe depth | `probe_blocks` |
//! | shallow feature difference | relative change of the probe's output since the step before |
//! | trajectory alignment `gamma` | the probe residual's position on the line of the last two, to `max_position` |
//! | `rel_l1_thresh` | `threshold` |
//! | `ret_ratio` | `warmup` |
//!
//! The residual is that of all blocks, the probe included. Every branch decides for itself. Published settings (commit
//! dd7f0de): `mid` of Wan, 0.08 and 0.2, and `mid` of HunyuanVideo, 0.1 and 0.2 (its comparison lets an equal sum pass;
//! here it is strict).

use super::approx::FOR_PROBED;
use super::dbcache::{FARTHEST, PROBE_POSITION, between};
use super::path_sum::PathSum;
use super::per_branch::PerBranch;
use super::{
    About, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run, Scope,
    Span, Spans, Subject, check_part,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "dicache",
    line: "change of the first block's output; values on the line through two computed steps",
    paper: "ICLR 2026, DiCache",
    source: "the released code",
    needs: None,
};

options! {
    /// Sum of the probe's relative changes at which a branch is computed again. 0 computes every step.
    threshold: f64,
    /// Blocks that run at every step.
    #[serde(default = "one_block")]
    probe_blocks: usize,
    /// This part of the steps, at the start, is computed.
    warmup: f64,
    /// Farthest position on the line; 1 is the last computed step.
    #[serde(default = "farthest")]
    max_position: f64,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How the blocks' work is approximated.
    #[serde(default = "two_anchors")]
    reuse: Reuse,
}

fn one_block() -> usize {
    1
}

fn farthest() -> f64 {
    FARTHEST
}

fn two_anchors() -> Reuse {
    Reuse::TwoAnchors
}

const PROBE: usize = 0;
const PROBE_CHANGE: Quantity = Subject::SpanOutput.by(Measure::RelativeChangeSinceVisit);

impl Method for Config {
    described!();

    fn guard(&self, steps: usize) -> Guard {
        Guard { first_steps: (self.warmup * steps as f64) as usize, last_steps: 0, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let probe = run.blocks(0..self.probe_blocks);
        let rest = Span { since: 0, ..Span::of(probe.end..run.units.len()) };
        let question = Question {
            to_decide: vec![],
            to_learn: vec![PROBE_CHANGE, PROBE_POSITION],
            to_reuse: vec![self.reuse.into()],
        };
        let asks = Asks { spans: Some(Spans { cut: vec![Span::probe(probe), rest], question }), ..Asks::default() };
        Box::new(PerBranch::new(run, |_| DiCache {
            asks: asks.clone(),
            reuse: self.reuse,
            max_position: self.max_position,
            sum: PathSum::new(self.threshold),
            change: None,
            position: None,
        }))
    }

    fn check(&self) -> Result<(), String> {
        if self.probe_blocks == 0 {
            return Err("probe_blocks is 0, expected at least 1: they decide".to_string());
        }
        check_part("warmup", self.warmup, "steps")?;
        if self.max_position < 1.0 {
            return Err(format!("max_position is {}, expected 1 or more", self.max_position));
        }
        self.reuse.check(FOR_PROBED)
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        let blocks = run.block_count();
        if self.probe_blocks < blocks {
            return Ok(());
        }
        Err(format!("probe_blocks is {} of {blocks} blocks, expected fewer", self.probe_blocks))
    }
}

struct DiCache {
    asks: Asks,
    reuse: Reuse,
    max_position: f64,
    sum: PathSum,
    change: Option<f64>,
    position: Option<f64>,
}

impl Policy for DiCache {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, _: At, _: &Measurements) -> Decision {
        match self.change {
            Some(change) if self.sum.add(change) => {
                Decision::Reuse(between(self.reuse, self.position, self.max_position))
            }
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.sum.set_threshold(threshold);
        true
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        match at.scope {
            Scope::Span { span: PROBE, .. } => {
                self.change = measured.get(PROBE_CHANGE);
                self.position = measured.get(PROBE_POSITION);
            }
            _ => self.sum.reset(),
        }
    }
}

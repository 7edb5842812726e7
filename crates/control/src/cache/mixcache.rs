//! MixCache (2025, arXiv 2508.12691): caching of steps, of the unconditional branch and of blocks, each where it costs
//! least.
//!
//! Of the paper only the abstract's level was to be had: three granularities, a trigger that depends on the content, an
//! adaptive choice. Everything else, every number included, is **our reconstruction**:
//!
//! * Caching begins once the change between computed steps has flattened: from one to the next it changes by less than
//!   `threshold`.
//! * From then on one step in `interval` is computed in full; the steps in between use one granularity: *step* (nothing
//!   runs), *cfg* (the conditional branch runs, the other is made from it) or *block* (both run, without the middle
//!   blocks).
//! * At a full step the truth about all three is there for free: how much the prediction's residual, the branches'
//!   difference and the middle blocks' work have changed since the last full step. The smallest `impact (1 + penalty
//!   uses) / saving` wins, `uses` counting how often in a row it has won already.
//!
//! Between two granularities there is always a full step.

use serde::{Deserialize, Serialize};

use super::approx::FOR_STEPS;
use super::{
    About, Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run,
    Scope, Span, Spans, Subject,
};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "mixcache",
    line: "steps, the unconditional branch or the middle blocks, whichever has changed least",
    paper: "2025, arXiv 2508.12691",
    source: "our reconstruction from the abstract",
    needs: None,
};

options! {
    /// Caching begins once the change between computed steps changes by less than this part. 0 computes every step.
    threshold: f64,
    /// One step in so many is computed in full; 1 computes every step.
    interval: usize,
    /// Which granularities there are.
    #[serde(default)]
    granularity: Granularity,
    /// Number of initial steps that are always computed.
    #[serde(default = "three")]
    warmup_steps: usize,
    /// Number of final steps that are always computed.
    #[serde(default = "one")]
    last_steps: usize,
    /// How much dearer a granularity becomes with each use in a row.
    #[serde(default = "penalty")]
    penalty: f64,
    /// The middle blocks begin after this part of all.
    #[serde(default = "quarter")]
    first_blocks: f64,
    /// The middle blocks end before this part of all.
    #[serde(default = "quarter")]
    last_blocks: f64,
    /// How the prediction of a reused step is approximated.
    #[serde(default)]
    reuse: Reuse,
}

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}

fn penalty() -> f64 {
    0.3
}

fn quarter() -> f64 {
    0.25
}

/// What may be left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Whichever has changed least.
    #[default]
    Adaptive,
    /// Steps only.
    Step,
    /// The unconditional branch only.
    Cfg,
    /// The middle blocks only.
    Block,
}

/// The three granularities, in the order that [`MixCache::choose`] weighs them in.
const GRAINS: [Granularity; 3] = [Granularity::Step, Granularity::Cfg, Granularity::Block];

const OUTPUT_CHANGE: Quantity = Subject::Output.by(Measure::RelativeChangeSinceCompute);
const RESIDUAL_CHANGE: Quantity = Subject::Residual.by(Measure::RelativeChangeSinceCompute);
const GAP_CHANGE: Quantity = Subject::CfgDifference.by(Measure::RelativeChangeSinceCompute);
const BLOCKS_CHANGE: Quantity = Subject::SpanResidual.by(Measure::RelativeChangeSinceCompute);
const FROM_COND: Approx = Approx::FromCond { low: 1.0, high: 1.0 };

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: self.last_steps, max_run: None }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let middle = middle(self, run);
        Box::new(MixCache {
            config: self.clone(),
            savings: [1.0, 0.5, middle.len() as f64 / run.units.len().max(1) as f64],
            middle,
            first: run.branches.first().copied().unwrap_or(Branch::Cond),
            flattened: false,
            change: None,
            blocks_change: None,
            grain: None,
            uses: 0,
            reduced: 0,
            is_reduced: false,
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.interval == 0 {
            return Err("interval is 0, expected 1 or more".to_string());
        }
        if self.first_blocks + self.last_blocks >= 1.0 {
            return Err("first_blocks and last_blocks leave no blocks between them".to_string());
        }
        if self.reuse == Reuse::FromCond {
            return Err("reuse=from_cond is granularity=cfg here".to_string());
        }
        self.reuse.check(FOR_STEPS)
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        let blocks = run.block_count();
        match self.granularity {
            Granularity::Block if middle(self, run).is_empty() => Err(format!(
                "granularity=block: first_blocks and last_blocks leave none of {blocks} blocks between them"
            )),
            Granularity::Cfg if run.branches.len() < 2 => {
                Err("granularity=cfg needs guidance: this run has one branch".to_string())
            }
            _ => Ok(()),
        }
    }
}

/// The blocks between the first and the last ones.
fn middle(config: &Config, run: &Run) -> std::ops::Range<usize> {
    let blocks = run.block_count() as f64;
    let (from, to) = ((config.first_blocks * blocks).ceil(), ((1.0 - config.last_blocks) * blocks).floor());
    run.blocks(from as usize..(to as usize).max(from as usize))
}

struct MixCache {
    config: Config,
    middle: std::ops::Range<usize>,
    /// Of each granularity, as a part of a full step.
    savings: [f64; 3],
    first: Branch,
    flattened: bool,
    /// Of the output, at the last full step.
    change: Option<f64>,
    blocks_change: Option<f64>,
    /// What the steps until the next full one leave out, an index into [`GRAINS`].
    grain: Option<usize>,
    /// How often in a row it was chosen.
    uses: usize,
    /// Steps since the last full one.
    reduced: usize,
    /// Whether this step leaves something out.
    is_reduced: bool,
}

impl MixCache {
    fn allows(&self, grain: Granularity) -> bool {
        self.config.granularity == Granularity::Adaptive || self.config.granularity == grain
    }

    fn leaves_out(&self, grain: Granularity) -> bool {
        self.is_reduced && self.grain.is_some_and(|g| GRAINS[g] == grain)
    }

    /// Whether the change between full steps has flattened at this one.
    fn flattens(&self, change: Option<f64>) -> bool {
        match (change, self.change) {
            (Some(now), Some(before)) => ((now - before) / before).abs() < self.config.threshold,
            _ => false,
        }
    }

    /// The granularity that costs least for what it saves.
    fn choose(&mut self, measured: &Measurements) {
        let impacts = [measured.get(RESIDUAL_CHANGE), measured.get(GAP_CHANGE), self.blocks_change];
        let score = |grain: usize| {
            let impact = impacts[grain].filter(|_| self.allows(GRAINS[grain]) && self.savings[grain] > 0.0)?;
            let uses = if self.grain == Some(grain) { self.uses } else { 0 };
            Some((grain, impact * (1.0 + self.config.penalty * uses as f64) / self.savings[grain]))
        };
        let best = (0..GRAINS.len()).filter_map(score).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(grain, _)| grain);
        self.uses = if best == self.grain { self.uses + 1 } else { 1 };
        self.grain = best;
    }
}

impl Policy for MixCache {
    fn asks(&self) -> Asks {
        let when = |grain, question| self.allows(grain).then_some(question);
        let step = Question {
            to_decide: vec![],
            to_learn: vec![OUTPUT_CHANGE, RESIDUAL_CHANGE, GAP_CHANGE],
            to_reuse: if self.allows(Granularity::Step) { vec![self.config.reuse.into()] } else { vec![] },
        };
        let branch = Question { to_reuse: vec![FROM_COND], ..Question::default() };
        let blocks = Question { to_decide: vec![], to_learn: vec![BLOCKS_CHANGE], to_reuse: vec![Approx::Residual] };
        let spans = Spans { cut: vec![Span::of(self.middle.clone()).watched()], question: blocks };
        Asks {
            step: Some(step),
            branch: when(Granularity::Cfg, branch),
            spans: self.allows(Granularity::Block).then_some(spans),
        }
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        match at.scope {
            Scope::Step => {
                self.is_reduced = self.flattened && self.grain.is_some() && self.reduced + 1 < self.config.interval;
                if self.is_reduced {
                    self.reduced += 1;
                }
                if self.leaves_out(Granularity::Step) {
                    Decision::Reuse(self.config.reuse.into())
                } else {
                    Decision::Compute
                }
            }
            Scope::Branch(Branch::Uncond) if self.leaves_out(Granularity::Cfg) => Decision::Reuse(FROM_COND),
            Scope::Span { .. } if self.leaves_out(Granularity::Block) => Decision::Reuse(Approx::Residual),
            _ => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        match at.scope {
            Scope::Span { branch, .. } if branch == self.first => self.blocks_change = measured.get(BLOCKS_CHANGE),
            Scope::Step if self.is_reduced => self.is_reduced = false,
            Scope::Step => {
                let change = measured.get(OUTPUT_CHANGE);
                self.flattened |= self.flattens(change);
                self.change = change;
                self.reduced = 0;
                self.choose(measured);
            }
            _ => {}
        }
    }
}

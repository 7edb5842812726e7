//! PreciseCache: *Precise Feature Caching for Efficient and High-fidelity Video Generation* (ICLR 2026, arXiv
//! 2603.00976). Its code is not public; this follows notes of the paper, and what they leave open is our
//! reconstruction.
//!
//! LFCache decides on steps: every step, the model looks at latents thinned out in time and space (about a thirtieth of
//! the tokens). How far the low spatial frequencies of that trial prediction move adds up, and is compared with a part
//! of the largest move so far. BlockCache acts inside of computed steps: after a step that runs all blocks, those that
//! changed the features least are approximated in the next ones.
//!
//! | paper | here |
//! |---|---|
//! | low-frequency difference `LFD` of the trial prediction | distance of its low-passed values since the step before |
//! | `delta = alpha max LFD` | `threshold` is `alpha` |
//! | downsampling 2 x 4 x 4 | `trial_frames`, `trial_size` |
//! | cache rate of BlockCache | `cached_blocks`, the part that is approximated; 0 switches BlockCache off |
//! | refresh interval `L` | `reduced_steps` |
//!
//! Reconstructed: the trial takes every n-th value (averaging would change the noise level), runs on its own small grid
//! with the conditional branch only, and one decision holds for both branches; the last step is computed; a share of 40
//! % is read as the share of blocks that are approximated, which fits the published operation counts; blocks are ranked
//! on the conditional branch.

use super::approx::FOR_STEPS;
use super::path_sum::PathSum;
use super::{
    About, Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Reuse, Run,
    Scope, Span, Spans, Subject, check_part,
};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "precisecache",
    line: "low frequencies of a trial prediction on thinned-out latents; blocks that matter least are approximated in computed steps",
    paper: "ICLR 2026, arXiv 2603.00976",
    source: "notes of the paper; gaps are our reconstruction",
    needs: Some("a small trial pass every step"),
};

options! {
    /// Accumulated move of the trial's low frequencies, as a part of the largest move of one step, at which a step is
    /// computed. 0 computes every step.
    threshold: f64,
    /// The trial takes one latent frame of so many.
    #[serde(default = "two")]
    trial_frames: usize,
    /// The trial takes one row and one column of so many.
    #[serde(default = "four")]
    trial_size: usize,
    /// Part of the blocks that is approximated in reduced steps; 0: none.
    #[serde(default)]
    cached_blocks: f64,
    /// So many computed steps after one with all blocks are reduced.
    #[serde(default = "three")]
    reduced_steps: usize,
    /// Longest run of reused steps; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_run: Option<usize>,
    /// How a reused prediction is approximated.
    #[serde(default = "output")]
    reuse: Reuse,
}

fn two() -> usize {
    2
}

fn three() -> usize {
    3
}

fn four() -> usize {
    4
}

fn output() -> Reuse {
    Reuse::Output
}

const BLOCK_NORM: Quantity = Subject::SpanResidual.by(Measure::Norm);

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: 1, last_steps: 1, max_run: self.max_run }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let trial = Subject::Trial { frames: self.trial_frames, size: self.trial_size };
        let blocks = run.block_count();
        let cut = (0..blocks).map(|block| Span::of(run.blocks(block..block + 1)).watched()).collect();
        Box::new(PreciseCache {
            config: self.clone(),
            trial_move: trial.by(Measure::DistanceSinceVisit),
            cut,
            largest: 0.0,
            sum: PathSum::new(0.0),
            first: run.branches.first().copied().unwrap_or(Branch::Cond),
            norms: vec![0.0; blocks],
            made_up: vec![false; blocks],
            reduced_left: 0,
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.trial_frames == 0 || self.trial_size == 0 {
            return Err("trial_frames and trial_size: expected 1 or more".to_string());
        }
        check_part("cached_blocks", self.cached_blocks, "blocks")?;
        self.reuse.check(FOR_STEPS)
    }
}

struct PreciseCache {
    config: Config,
    trial_move: Quantity,
    /// A span a block.
    cut: Vec<Span>,
    /// Largest move of the trial in one step so far.
    largest: f64,
    /// Its moves since the last computed step.
    sum: PathSum,
    first: Branch,
    /// Of what each block added in the last step that ran all of them.
    norms: Vec<f64>,
    /// Which blocks a reduced step approximates.
    made_up: Vec<bool>,
    /// Reduced steps until all blocks run again.
    reduced_left: usize,
}

impl PreciseCache {
    fn has_block_cache(&self) -> bool {
        self.config.cached_blocks > 0.0 && self.config.reduced_steps > 0
    }

    /// Those with the smallest norms.
    fn choose_blocks(&mut self) {
        let count = (self.config.cached_blocks * self.norms.len() as f64) as usize;
        let mut order: Vec<usize> = (0..self.norms.len()).collect();
        order.sort_by(|&a, &b| self.norms[a].total_cmp(&self.norms[b]));
        self.made_up.fill(false);
        for &block in &order[..count] {
            self.made_up[block] = true;
        }
    }
}

impl Policy for PreciseCache {
    fn asks(&self) -> Asks {
        let step =
            Question { to_decide: vec![self.trial_move], to_learn: vec![], to_reuse: vec![self.config.reuse.into()] };
        let block = Question { to_decide: vec![], to_learn: vec![BLOCK_NORM], to_reuse: vec![Approx::Residual] };
        let spans = self.has_block_cache().then(|| Spans { cut: self.cut.clone(), question: block });
        Asks { step: Some(step), branch: None, spans }
    }

    fn decide(&mut self, at: At, measured: &Measurements) -> Decision {
        match at.scope {
            Scope::Span { span, .. } if self.reduced_left > 0 && self.made_up[span] => {
                Decision::Reuse(Approx::Residual)
            }
            Scope::Step => match measured.get(self.trial_move) {
                Some(moved) => {
                    self.largest = self.largest.max(moved);
                    self.sum.set_threshold(self.config.threshold * self.largest);
                    if self.sum.add(moved) { Decision::Reuse(self.config.reuse.into()) } else { Decision::Compute }
                }
                None => Decision::Compute,
            },
            _ => Decision::Compute,
        }
    }

    fn dial(&mut self, threshold: f64) -> bool {
        self.config.threshold = threshold;
        true
    }

    fn computed(&mut self, at: At, measured: &Measurements) {
        match at.scope {
            Scope::Span { branch, span } if branch == self.first => {
                self.norms[span] = measured.get(BLOCK_NORM).unwrap_or(0.0);
            }
            Scope::Step => {
                self.sum.reset();
                if self.reduced_left > 0 {
                    self.reduced_left -= 1;
                } else {
                    self.choose_blocks();
                    self.reduced_left = self.config.reduced_steps;
                }
            }
            _ => {}
        }
    }
}

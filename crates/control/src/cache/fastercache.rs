//! FasterCache: *Training-Free Video Diffusion Model Acceleration with High Quality* (Lv et al., ICLR 2025, arXiv
//! 2410.19355; here as in diffusers 0.42.1, `hooks/faster_cache.py`).
//!
//! Two parts. The unconditional branch runs at one step in `uncond_interval`; in between its difference to the
//! conditional one is added, low and high spatial frequencies growing by a factor each time, since low ones matter
//! early and high ones late. Self-attention runs at one step in `attention_interval`, and goes on along the line
//! through its last two results in between; with guidance it does so only at steps that leave the unconditional branch
//! out, so that branch's attention is never approximated. Without guidance (distilled models have one branch) nothing
//! else holds it back.
//!
//! | diffusers | here |
//! |---|---|
//! | `spatial_attention_block_skip_range` | `attention_interval` |
//! | `spatial_attention_timestep_skip_range` | `attention_below` |
//! | `attention_weight_callback` | `attention_weight` |
//! | `unconditional_batch_skip_range` | `uncond_interval` |
//! | `unconditional_batch_timestep_skip_range` | `uncond_below` |
//! | `alpha_low_frequency`, `low_frequency_weight_update_timestep_range` | `low_growth`, timesteps 99 to 901 |
//! | `alpha_high_frequency`, `high_frequency_weight_update_timestep_range` | `high_growth`, timesteps below 301 |
//!
//! Two differences. diffusers' line goes through the results of the last two steps, approximated ones included; here it
//! goes through the last two computed ones (nothing approximated is kept). diffusers keeps what attention returns; here
//! it is what it adds to the features, the gate of its own step included.

use super::{
    About, Approx, Asks, At, Decision, Guard, Measurements, Method, Policy, Question, Run, Scope, Span, Spans,
};
use crate::guidance::Branch;

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "fastercache",
    line: "the unconditional branch at one step in five, then self-attention at one in two, by a fixed schedule",
    paper: "Lv et al., ICLR 2025, arXiv 2410.19355",
    source: "diffusers, but for what its line goes through",
    needs: Some("memory for every self-attention; guidance for its second part"),
};

options! {
    /// Self-attention is computed at one step in so many; 1 at every step.
    attention_interval: usize,
    /// Self-attention is reused at timesteps below this.
    attention_below: f64,
    /// How far self-attention goes on along the line through its last two results; 0 holds the last.
    attention_weight: f64,
    /// The unconditional branch is computed at one step in so many; 1 at every step.
    uncond_interval: usize,
    /// The unconditional branch is reused at timesteps below this.
    uncond_below: f64,
    /// Factor of the difference's low frequencies at every reuse, at timesteps between 99 and 901.
    low_growth: f64,
    /// Factor of its high frequencies at every reuse, at timesteps below 301.
    high_growth: f64,
}

/// Timesteps, exclusive, between which the low frequencies grow.
const LOW_GROWS: (f64, f64) = (99.0, 901.0);
/// Timestep below which the high ones do.
const HIGH_GROWS_BELOW: f64 = 301.0;

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: 1, ..Guard::NONE }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let cut = run.units.iter().enumerate().filter(|(_, unit)| unit.part.is_self_attention());
        let cut = cut.map(|(i, _)| Span::of(i..i + 1)).collect();
        let guided = run.branches.len() > 1;
        Box::new(FasterCache { config: self.clone(), cut, guided, low: 1.0, high: 1.0 })
    }

    fn check(&self) -> Result<(), String> {
        if self.attention_interval == 0 || self.uncond_interval == 0 {
            return Err("attention_interval and uncond_interval: expected 1 or more".to_string());
        }
        Ok(())
    }
}

struct FasterCache {
    config: Config,
    cut: Vec<Span>,
    /// Whether there is an unconditional branch.
    guided: bool,
    /// What the frequencies of the difference have grown by since it was computed.
    low: f64,
    high: f64,
}

impl FasterCache {
    fn attention(&self) -> Approx {
        Approx::TwoAnchors { weight: 1.0 + self.config.attention_weight }
    }

    fn leaves_uncond_out(&self, at: At) -> bool {
        at.timestep.0 < self.config.uncond_below && !at.step.is_multiple_of(self.config.uncond_interval)
    }

    fn leaves_attention_out(&self, at: At) -> bool {
        at.timestep.0 < self.config.attention_below
            && !at.step.is_multiple_of(self.config.attention_interval)
            && (!self.guided || self.leaves_uncond_out(at))
    }

    fn uncond(&mut self, at: At) -> Decision {
        if !self.leaves_uncond_out(at) {
            return Decision::Compute;
        }
        if LOW_GROWS.0 < at.timestep.0 && at.timestep.0 < LOW_GROWS.1 {
            self.low *= self.config.low_growth;
        }
        if at.timestep.0 < HIGH_GROWS_BELOW {
            self.high *= self.config.high_growth;
        }
        Decision::Reuse(Approx::FromCond { low: self.low, high: self.high })
    }
}

impl Policy for FasterCache {
    fn asks(&self) -> Asks {
        let question = |approx| Question { to_reuse: vec![approx], ..Question::default() };
        Asks {
            step: None,
            branch: Some(question(Approx::FromCond { low: 1.0, high: 1.0 })),
            spans: Some(Spans { cut: self.cut.clone(), question: question(self.attention()) }),
        }
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        match at.scope {
            Scope::Branch(Branch::Uncond) => self.uncond(at),
            Scope::Span { .. } if self.leaves_attention_out(at) => Decision::Reuse(self.attention()),
            _ => Decision::Compute,
        }
    }

    fn computed(&mut self, at: At, _: &Measurements) {
        if at.scope == Scope::Branch(Branch::Uncond) {
            (self.low, self.high) = (1.0, 1.0);
        }
    }
}

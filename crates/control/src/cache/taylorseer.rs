//! TaylorSeer: *From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers* (Liu et al., ICCV 2025,
//! arXiv 2503.06923; here as in diffusers).
//!
//! One step in `interval` is computed; between them values follow a Taylor series in the step's index, with differences
//! between computed steps for derivatives. No measurement, no threshold.
//!
//! | diffusers | here |
//! |---|---|
//! | `cache_interval` | `interval` |
//! | `disable_cache_before_step` | `warmup_steps` |
//! | `max_order` | `order` |
//! | `use_lite_mode` | `level=output` |

use serde::{Deserialize, Serialize};

use super::{
    About, Approx, Asks, At, Decision, Form, Guard, Measurements, Method, Part, Policy, Question, Run, Span, Spans,
};

/// What `navicache methods` says.
pub const ABOUT: About = About {
    name: "taylorseer",
    line: "one step in N is computed, the others follow a Taylor series",
    paper: "Liu et al., ICCV 2025, arXiv 2503.06923",
    source: "diffusers",
    needs: Some("level=units keeps every attention and feed-forward"),
};

options! {
    /// One step in so many is computed; 1 computes every step.
    interval: usize,
    /// Number of initial steps that are always computed.
    warmup_steps: usize,
    /// Highest power of the series, 0 to 2.
    order: usize,
    /// What is forecast.
    level: Level,
    /// Number of final steps that are always computed.
    #[serde(default)]
    last_steps: usize,
}

/// What is forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The model's prediction.
    Output,
    /// What all blocks add to the features.
    Features,
    /// What every part of every block adds.
    Units,
}

impl Method for Config {
    described!();

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.warmup_steps, last_steps: self.last_steps, max_run: None }
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let form = if self.level == Level::Output { Form::Output } else { Form::Residual };
        let approx = Approx::Taylor { order: self.order, form };
        let question = Question { to_reuse: vec![approx], ..Question::default() };
        let asks = match self.level {
            Level::Output => Asks { branch: Some(question), ..Asks::default() },
            Level::Features => Asks::stack(run, question),
            Level::Units => {
                let cut = (0..run.units.len()).map(|unit| Span::of(unit..unit + 1)).collect();
                Asks { spans: Some(Spans { cut, question }), ..Asks::default() }
            }
        };
        Box::new(TaylorSeer { asks, approx, interval: self.interval, warmup_steps: self.warmup_steps })
    }

    fn check(&self) -> Result<(), String> {
        if self.interval == 0 {
            return Err("interval is 0, expected 1 or more".to_string());
        }
        if self.order > 2 {
            return Err(format!("order is {}, expected 0 to 2", self.order));
        }
        Ok(())
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        if self.level == Level::Units && run.units.iter().all(|u| u.part == Part::Whole) {
            return Err("level=units: the model's blocks have no parts; take level=features".to_string());
        }
        Ok(())
    }
}

struct TaylorSeer {
    asks: Asks,
    approx: Approx,
    interval: usize,
    warmup_steps: usize,
}

impl Policy for TaylorSeer {
    fn asks(&self) -> Asks {
        self.asks.clone()
    }

    fn decide(&mut self, at: At, _: &Measurements) -> Decision {
        // The reference computes step warmup + 1 and every interval from there, in a count that may start below zero.
        let since = at.step as i64 - self.warmup_steps as i64 - 1;
        if since.rem_euclid(self.interval as i64) == 0 { Decision::Compute } else { Decision::Reuse(self.approx) }
    }
}

//! A cache method of one's own, in the two halves every method has: the configuration, and its state during one
//! generation.
//!
//!     cargo run --release -p navicache-engine --example custom_policy

use std::ops::ControlFlow;

use navicache_engine::control::cache::{
    Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Quantity, Question, Run, Subject,
};
use navicache_engine::{LoadOptions, Pipeline, Request, generate_with};

/// Reuses until the latents have moved by `budget` since the last computed step, in mean absolute change.
struct Budget {
    budget: f64,
}

impl Method for Budget {
    fn name(&self) -> &str {
        "budget"
    }

    /// What holds for every method: here the first five steps and the last are computed.
    fn guard(&self, _steps: usize) -> Guard {
        Guard { first_steps: 5, last_steps: 1, max_run: None }
    }

    fn policy(&self, _run: &Run) -> Box<dyn Policy> {
        Box::new(Spent { budget: self.budget })
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({ "budget": self.budget })
    }
}

/// Mean absolute change of the latents since the last computed step.
const INPUT_CHANGE: Quantity = Subject::Input.by(Measure::ChangeSinceCompute);

struct Spent {
    budget: f64,
}

impl Policy for Spent {
    /// The engine measures and keeps only what is asked for.
    fn asks(&self) -> Asks {
        let question = Question { to_decide: vec![INPUT_CHANGE], to_learn: vec![], to_reuse: vec![Approx::Residual] };
        Asks { step: Some(question), ..Asks::default() } // about whole steps; branches and spans of blocks go likewise
    }

    fn decide(&mut self, _at: At, measured: &Measurements) -> Decision {
        match measured.get(INPUT_CHANGE) {
            Some(change) if change < self.budget => Decision::Reuse(Approx::Residual),
            _ => Decision::Compute,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::open("demo", &LoadOptions::default())?;
    let request = Request::new("a yellow ring circling on a teal background");
    for budget in [0.0, 0.05, 0.1] {
        let video = generate_with(&pipeline, &request, &Budget { budget }, &mut |_| ControlFlow::Continue(()))?;
        println!("budget {budget:<4}  {}", video.report.strip);
    }
    Ok(())
}

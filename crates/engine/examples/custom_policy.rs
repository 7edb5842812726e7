//! A cache method of one's own, in the two halves every method has: the configuration, and its state during one generation.
//!
//!     cargo run --release -p navicache-engine --example custom_policy

use std::ops::ControlFlow;

use navicache_engine::control::cache::{Approx, Asks, At, Decision, Guard, Method, Policy, Quantity, Run, Seen};
use navicache_engine::{Bundle, LoadOptions, Request, generate_with};

/// Reuses until the latents have moved by `budget` since the last computed step, in mean absolute change.
struct Budget {
    budget: f64,
}

impl Method for Budget {
    fn name(&self) -> &str {
        "budget"
    }

    /// What holds for every method: here the first five steps and the last are computed.
    fn guard(&self) -> Guard {
        Guard { first_steps: 5, last_steps: 1, max_run: None }
    }

    fn policy(&self, _run: &Run) -> Box<dyn Policy> {
        Box::new(Spent { budget: self.budget })
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({ "budget": self.budget })
    }
}

struct Spent {
    budget: f64,
}

impl Policy for Spent {
    /// The engine measures and keeps only what is asked for.
    fn asks(&self) -> Asks {
        Asks { to_decide: vec![Quantity::InputChangeSinceCompute], to_learn: vec![], to_reuse: vec![Approx::Residual] }
    }

    fn decide(&mut self, _at: At, seen: &Seen) -> Decision {
        match seen.get(Quantity::InputChangeSinceCompute) {
            Some(change) if change < self.budget => Decision::Reuse(Approx::Residual),
            _ => Decision::Compute,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bundle = Bundle::open("demo", &LoadOptions::default())?;
    let request = Request::new("a yellow ring circling on a teal background");
    for budget in [0.0, 0.05, 0.1] {
        let video = generate_with(&bundle, &request, &Budget { budget }, &mut |_| ControlFlow::Continue(()))?;
        println!("budget {budget:<4}  {}", video.report.strip);
    }
    Ok(())
}

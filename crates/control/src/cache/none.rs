//! No caching: every step is computed. The baseline that every other method is compared with.

use serde::{Deserialize, Serialize};

use super::{Asks, At, Decision, Guard, Method, Policy, Run, Seen};

/// No options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Method for Config {
    fn name(&self) -> &str {
        "none"
    }

    fn guard(&self) -> Guard {
        Guard { first_steps: 0, last_steps: 0, max_run: None }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        Box::new(Never)
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({})
    }
}

struct Never;

impl Policy for Never {
    fn asks(&self) -> Asks {
        Asks::default()
    }

    fn decide(&mut self, _: At, _: &Seen) -> Decision {
        Decision::Compute
    }
}

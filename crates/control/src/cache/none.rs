//! No caching: every step is computed. The baseline that every other method is compared with.

use super::{About, Asks, At, Decision, Guard, Measurements, Method, Policy, Run};

/// What `navicache methods` says.
pub const ABOUT: About = About { name: "none", line: "computes everything", paper: "-", source: "-", needs: None };

options! {}

impl Method for Config {
    described!();

    fn caches(&self) -> bool {
        false
    }

    fn guard(&self, _: usize) -> Guard {
        Guard::NONE
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        Box::new(Never)
    }
}

struct Never;

impl Policy for Never {
    fn asks(&self) -> Asks {
        Asks::default()
    }

    fn decide(&mut self, _: At, _: &Measurements) -> Decision {
        Decision::Compute
    }
}

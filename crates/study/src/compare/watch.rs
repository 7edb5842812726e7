//! Watches a policy decide, to say which blocks ran: reports count the units of a forward, they do not name them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use navicache_engine::control::cache::{Asks, At, Decision, Guard, Method, Policy, Run, Scope, Seen};
use navicache_engine::control::guidance::Branch;
use serde_json::{Value, json};

/// A method that is watched.
pub(super) struct Watched<'a> {
    method: &'a dyn Method,
    log: Rc<RefCell<Log>>,
}

#[derive(Default)]
struct Log {
    run: Option<Run>,
    asks: Asks,
    /// Spans that were made up.
    reused: HashSet<(usize, Branch, usize)>,
}

impl<'a> Watched<'a> {
    pub fn new(method: &'a dyn Method) -> Self {
        Watched { method, log: Rc::default() }
    }

    /// What ran of every step and branch: `S` all of it, `.` nothing, else a character a unit, in the order they run.
    /// `strip` says which.
    pub fn ran(&self, strip: &str) -> Value {
        let log = self.log.borrow();
        let Some(run) = &log.run else { return Value::Null };
        let steps: Vec<Vec<String>> = strip
            .split_terminator('|')
            .enumerate()
            .map(|(step, symbols)| {
                let of_branch = |(symbol, branch): (char, &Branch)| match symbol {
                    'm' => log.units(run, step, *branch),
                    symbol => symbol.to_string(),
                };
                symbols.chars().zip(&run.branches).map(of_branch).collect()
            })
            .collect();
        let units: Vec<Value> = run.units.iter().map(|unit| json!({"block": unit.block, "part": unit.part})).collect();
        json!({"branches": run.branches, "units": units, "steps": steps})
    }
}

impl Log {
    /// Units in no span, or in one that was not made up, ran.
    fn units(&self, run: &Run, step: usize, branch: Branch) -> String {
        let mut ran = vec!['S'; run.units.len()];
        for (index, span) in self.asks.spans.iter().flat_map(|spans| &spans.cut).enumerate() {
            if self.reused.contains(&(step, branch, index)) {
                ran[span.units.clone()].fill('.');
            }
        }
        ran.into_iter().collect()
    }
}

impl Method for Watched<'_> {
    fn name(&self) -> &str {
        self.method.name()
    }

    fn guard(&self, steps: usize) -> Guard {
        self.method.guard(steps)
    }

    fn policy(&self, run: &Run) -> Box<dyn Policy> {
        let policy = self.method.policy(run);
        *self.log.borrow_mut() = Log { run: Some(run.clone()), asks: policy.asks(), reused: HashSet::new() };
        Box::new(Watcher { policy, log: self.log.clone() })
    }

    fn options(&self) -> Value {
        self.method.options()
    }

    fn caches(&self) -> bool {
        self.method.caches()
    }

    fn check(&self) -> Result<(), String> {
        self.method.check()
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        self.method.check_run(run)
    }
}

struct Watcher {
    policy: Box<dyn Policy>,
    log: Rc<RefCell<Log>>,
}

impl Policy for Watcher {
    fn asks(&self) -> Asks {
        self.policy.asks()
    }

    fn decide(&mut self, at: At, seen: &Seen) -> Decision {
        let decision = self.policy.decide(at, seen);
        if let (Scope::Span { branch, span }, Decision::Reuse(_)) = (at.scope, decision) {
            self.log.borrow_mut().reused.insert((at.step, branch, span));
        }
        decision
    }

    /// The guard may have had it computed nevertheless.
    fn computed(&mut self, at: At, seen: &Seen) {
        if let Scope::Span { branch, span } = at.scope {
            self.log.borrow_mut().reused.remove(&(at.step, branch, span));
        }
        self.policy.computed(at, seen);
    }
}

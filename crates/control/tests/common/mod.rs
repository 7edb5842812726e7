//! Plays a policy against measured values, asking as the engine does.

use navicache_control::cache::{
    Approx, CacheConfig, CacheSpec, Decision, Guarded, Part, Quantity, Question, Run, Scope, Seen, Unit,
};
use navicache_control::guidance::Branch;
use navicache_control::schedule::flow_unipc;

/// Blocks of the model that is played.
pub const BLOCKS: usize = 6;

/// A run of a model with three units a block.
pub fn run(steps: usize) -> Run {
    let parts = [Part::SelfAttn, Part::CrossAttn, Part::Mlp];
    Run {
        family: "wan".to_string(),
        steps: flow_unipc(steps, 3.0, 1000).unwrap().steps,
        branches: vec![Branch::Cond, Branch::Uncond],
        units: (0..BLOCKS).flat_map(|block| parts.map(|part| Unit { block, part })).collect(),
    }
}

/// A method by its `--cache` argument, with the presets of Wan.
pub fn method(text: &str) -> CacheConfig {
    text.parse::<CacheSpec>().unwrap().resolve("wan").unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// What a run did.
#[derive(Debug, Default, PartialEq)]
pub struct Played {
    /// By step and branch: how many of the units were computed.
    pub units: Vec<Vec<usize>>,
    /// Everything that was reused, where, and how.
    pub reused: Vec<(usize, Scope, Approx)>,
}

impl Played {
    /// Whether a step computed everything.
    pub fn is_full(&self, step: usize) -> bool {
        self.units[step].iter().all(|&units| units == 3 * BLOCKS)
    }
}

/// A measured value; absent where there is none.
pub type Measured<'a> = &'a mut dyn FnMut(usize, Scope, Quantity) -> Option<f64>;

/// Plays a whole run.
pub fn play(config: &CacheConfig, steps: usize, measure: Measured) -> Played {
    let run = run(steps);
    let mut player = Player { policy: config.method().start(&run), run };
    let mut played = Played::default();
    for step in 0..steps {
        player.step(step, measure, &mut played);
    }
    played
}

struct Player {
    policy: Guarded,
    run: Run,
}

impl Player {
    fn step(&mut self, step: usize, measure: Measured, played: &mut Played) {
        let mut units = vec![0; self.run.branches.len()];
        match self.ask(step, Scope::Step, measure, played) {
            Decision::Reuse(Approx::FromCond { .. }) => units[0] = self.run.units.len(),
            Decision::Reuse(_) => {}
            Decision::Compute => {
                for (i, branch) in self.run.branches.clone().into_iter().enumerate() {
                    units[i] = self.branch(step, branch, measure, played);
                }
                self.learn(step, Scope::Step, measure);
            }
        }
        played.units.push(units);
    }

    fn branch(&mut self, step: usize, branch: Branch, measure: Measured, played: &mut Played) -> usize {
        if self.ask(step, Scope::Branch(branch), measure, played) != Decision::Compute {
            return 0;
        }
        let mut units = self.run.units.len();
        for (span, cut) in self.policy.asks().spans.clone().map(|s| s.cut).unwrap_or_default().into_iter().enumerate() {
            let scope = Scope::Span { branch, span };
            let decision = if cut.reusable { self.ask(step, scope, measure, played) } else { Decision::Compute };
            match decision {
                Decision::Compute if cut.watched => self.learn(step, scope, measure),
                Decision::Compute => self.policy.computed(self.run.at(step, scope), &Seen::default()),
                Decision::Reuse(_) => units -= cut.units.len(),
            }
        }
        if units > 0 {
            self.learn(step, Scope::Branch(branch), measure);
        }
        units
    }

    fn ask(&mut self, step: usize, scope: Scope, measure: Measured, played: &mut Played) -> Decision {
        let Some(question) = self.policy.asks().question(scope).cloned() else { return Decision::Compute };
        let seen = see(step, scope, &question.to_decide, measure);
        let at = self.run.at(step, scope);
        let decision = self.policy.decide(at, &seen);
        if let Decision::Reuse(approx) = decision {
            let branch = match scope {
                Scope::Step => *self.run.branches.last().unwrap(),
                Scope::Branch(branch) | Scope::Span { branch, .. } => branch,
            };
            let recipe = self.policy.recipe(branch, at, approx);
            assert!(!recipe.weights.is_empty() && recipe.weights.iter().all(|w| w.is_finite()), "{recipe:?}");
            assert!(recipe.weights.len() <= approx.depth(), "{recipe:?}");
            let kept: Vec<_> = question.to_reuse.iter().map(|a| (a.kept(scope), a.depth())).collect();
            assert!(
                kept.iter().any(|&(k, depth)| k == recipe.kept && depth >= approx.depth()),
                "{approx:?} of {kept:?}"
            );
            played.reused.push((step, scope, approx));
        }
        decision
    }

    fn learn(&mut self, step: usize, scope: Scope, measure: Measured) {
        let question = self.policy.asks().question(scope).cloned().unwrap_or_default();
        let Question { to_learn, .. } = question;
        let seen = see(step, scope, &to_learn, measure);
        self.policy.computed(self.run.at(step, scope), &seen);
    }
}

fn see(step: usize, scope: Scope, quantities: &[Quantity], measure: Measured) -> Seen {
    quantities.iter().filter_map(|&q| Some((q, measure(step, scope, q)?))).collect()
}

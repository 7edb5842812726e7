//! Plays a policy against measured values of a small model.

use navicache_control::cache::references::Place;
use navicache_control::cache::{CacheConfig, CacheSpec, Method, Part, Quantity, Run, Scope, Unit};
use navicache_control::guidance::Branch;
use navicache_control::schedule::flow_unipc;
use navicache_replay::player::{self, Measures, Played};

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
        segments: vec![],
    }
}

/// A method by its `--cache` argument, with the presets of Wan.
pub fn method(text: &str) -> CacheConfig {
    method_for(text, "wan")
}

/// A method by its `--cache` argument, with the presets of a family of models.
pub fn method_for(text: &str, family: &str) -> CacheConfig {
    text.parse::<CacheSpec>().unwrap().resolve(family).unwrap_or_else(|e| panic!("{text} for {family}: {e}"))
}

/// A measured value; absent where there is none.
pub type Measured<'a> = &'a mut dyn FnMut(usize, Scope, Quantity) -> Option<f64>;

struct Given<'a>(Measured<'a>);

impl Measures for Given<'_> {
    fn measure(&mut self, place: Place, quantity: Quantity, _: Option<usize>, _: &[usize]) -> Option<f64> {
        (self.0)(place.at.step, place.at.scope, quantity)
    }
}

/// Plays a whole run.
pub fn play(config: &CacheConfig, steps: usize, measure: Measured) -> Played {
    play_on(&run(steps), config, measure)
}

/// Plays a run that is not the usual one.
pub fn play_on(run: &Run, config: &CacheConfig, measure: Measured) -> Played {
    play_method(run, config.method(), measure)
}

/// Plays any method.
pub fn play_method(run: &Run, method: &dyn Method, measure: Measured) -> Played {
    player::play(run, method, &mut Given(measure)).unwrap()
}

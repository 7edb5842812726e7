//! What deciding costs on the embedded model, against a computed step.
//!
//!     cargo run --release -p navicache-engine --example deciding
//!
//! *decide*: a policy's arithmetic for a whole run, played against a recorded trace, over the run's steps. *measure*: a
//! run that measures all that the method asks for and computes everything all the same, against the run without
//! caching; runs alternate, the median of the ratios counts, and what is below the noise is below the noise. Methods
//! that look ahead with the model (precisecache) or through filters (seacache) pay for it here.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Instant;

use navicache_engine::control::cache::{CacheConfig, CacheSpec};
use navicache_engine::replay::player::replay;
use navicache_engine::replay::trace::Recorder;
use navicache_engine::{LoadOptions, Pipeline, Request, generate, trace};

const PROMPT: &str = "a red circle bouncing on a navy background";
const ROUNDS: usize = 3;
const PLAYS: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::open("demo", &LoadOptions::default())?;
    let go_on = &mut |_: navicache_engine::Event| ControlFlow::Continue(());
    let recorded = trace::record(&pipeline, &Request::new(PROMPT), &Recorder::default(), go_on)?;
    let steps = recorded.steps.len() as f64;

    // Threshold 0 (or interval 1) measures and computes; fixed schedules measure nothing.
    let off = |name: &str| match name {
        "none" | "pab" | "taylorseer" | "fastercache" | "magcache" => None,
        name => Some(format!("{name},threshold=0")),
    };
    let mut denoise = |cache: &str| -> Result<f64, Box<dyn std::error::Error>> {
        let request = Request { cache: Some(cache.parse::<CacheSpec>()?), ..Request::new(PROMPT) };
        Ok(generate(&pipeline, &request, go_on)?.report.totals.seconds.denoise)
    };
    let plain = median((0..ROUNDS).map(|_| denoise("none")).collect::<Result<_, _>>()?);
    let step = plain / steps;
    println!("a computed step takes {:.1} ms", 1e3 * step);
    println!("| method | decide, µs a step | of a computed step | measure, of a computed step |");
    println!("|---|---|---|---|");
    for about in CacheConfig::METHODS.iter().filter(|about| !["none", "schedule"].contains(&about.name)) {
        let config = about.name.parse::<CacheSpec>()?.resolve(&pipeline.defaults().presets)?;
        // Looking values up in the trace is the replay's own cost: a run without questions has none, a policy's is the
        // rest.
        let mut times = Vec::new();
        for _ in 0..PLAYS {
            let clock = Instant::now();
            black_box(replay(&recorded, config.method())?);
            times.push(clock.elapsed().as_secs_f64() / steps);
        }
        let decide = median(times);
        let measure = match off(about.name) {
            None => "nothing measured".to_string(),
            Some(cache) => {
                let ratio = |_| Ok::<f64, Box<dyn std::error::Error>>(denoise(&cache)? / denoise("none")? - 1.0);
                format!("{:+.1} %", 100.0 * median((0..ROUNDS).map(ratio).collect::<Result<_, _>>()?))
            }
        };
        println!("| `{}` | {:.1} | {:.3} % | {measure} |", about.name, 1e6 * decide, 100.0 * decide / step);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

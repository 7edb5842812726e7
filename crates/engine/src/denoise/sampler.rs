//! The sampling loop: ask about a step, predict every branch, combine them, advance the solver.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use navicache_control::cache::walk::{Begun, Session};
use navicache_control::cache::{Approx, BranchRecord, Guarded, Run, Scope, StepRecord, Subject};
use navicache_control::guidance::Branch;
use navicache_control::schedule::{Schedule, Step};
use navicache_control::solver::SolverKind;
use navicache_control::solver::skipping::{Keeps, Stepper};
use navicache_control::strip::{Ran, Strip};
use navicache_models::Branches;

use super::forward::Tensors;
use crate::machine::computing;
use crate::report::{BranchReport, StepReport};
use crate::{Error, Result};

/// What a run left.
pub(crate) struct Sampled {
    /// The final latents. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    pub strip: Strip,
    pub steps: Vec<StepReport>,
    /// Every decision and measurement, as the walk recorded them.
    #[cfg_attr(not(test), expect(dead_code, reason = "reports hold what users ask for; tests compare the rest"))]
    pub records: Vec<StepRecord>,
}

/// What is reported of a finished step.
pub(crate) struct StepDone<'a> {
    pub index: usize,
    pub seconds: f64,
    pub strip: &'a Strip,
}

/// Where denoising starts from.
pub(crate) struct Start {
    /// Noise, or latents from a file. // (1, channels, latent frames, height, width)
    pub latents: Tensor,
    /// Latent frames that are known: the model sees them in place of the first ones. // (1, channels, few, height,
    /// width)
    pub known: Option<Tensor>,
}

impl Start {
    /// Latents with the known frames in their place.
    fn shown(known: Option<&Tensor>, latents: &Tensor) -> Result<Tensor> {
        let Some(known) = known else { return Ok(latents.clone()) };
        let count = known.dim(2)?;
        let left = latents.dim(2)? - count;
        Ok(if left == 0 { known.clone() } else { Tensor::cat(&[known, &latents.narrow(2, count, left)?], 2)? })
    }

    /// The latents of frames that are not known; of what happens to the others nothing is seen.
    fn free(known: Option<&Tensor>, latents: &Tensor) -> Result<Tensor> {
        let count = known.map_or(Ok(0), |known| known.dim(2))?;
        let left = latents.dim(2)? - count;
        Ok(if left == 0 { latents.zeros_like()? } else { latents.narrow(2, count, left)? })
    }
}

/// Denoises latents along the run's steps. The policy lives for this call only.
pub(crate) fn sample(
    denoiser: &dyn Branches,
    branches: &[(Branch, f64)],
    start: Start,
    run: &Run,
    solver: SolverKind,
    policy: Guarded,
    on_step: &mut dyn FnMut(StepDone) -> ControlFlow<()>,
) -> Result<Sampled> {
    let Start { mut latents, known } = start;
    let may = |approx: Approx| policy.asks().step.iter().flat_map(|q| &q.to_reuse).any(|a| *a == approx);
    let corrects = may(Approx::Corrected);
    let learns_error = policy.asks().learns(Subject::SolverError);
    let keeps = match (corrects, learns_error) {
        (true, _) => Keeps::WhatCorrects,
        (false, true) => Keeps::Velocities,
        (false, false) => Keeps::Nothing,
    };
    let spans = policy.asks().spans.as_ref().map_or(0, |spans| spans.cut.len());
    let mut stepper = Stepper::new(solver, Schedule { steps: run.steps.clone() }, keeps);
    let mut session = Session::new(run.clone(), policy);
    let mut tensors = Tensors::new(denoiser, run, branches, latents.clone());
    let mut strip = Strip::default();
    let mut clocks = Vec::with_capacity(run.steps.len());

    for step in 0..run.steps.len() {
        let begun = Instant::now();
        let mut seconds = vec![0.0; branches.len()];
        tensors.set_step(step, Start::shown(known.as_ref(), &latents)?);

        // All of it runs on a thread that computes: from there, work is shared at little cost.
        let (next, symbols) = computing(|| {
            // 1. Is it computed, approximated, or skipped?
            let skipped = session.begin_step(step, &mut tensors)?;
            if let Begun::Skipped(skip) = skipped {
                let next = stepper.skip(step, skip, &mut tensors)?;
                return Ok((next, ended(session.end_step(&mut tensors)?)));
            }

            // 2. The velocity of every branch, and of all together
            for ((branch, _), seconds) in branches.iter().zip(&mut seconds) {
                let begun = Instant::now();
                session.branch(*branch, &mut tensors)?;
                *seconds = begun.elapsed().as_secs_f64();
            }
            let velocity = tensors.velocity()?;

            // 3. Advance, and learn
            let x = tensors.latents().clone();
            let sample = stepper.arrive(step, &x, &velocity, &mut tensors)?;
            let error = if learns_error { stepper.error(&x, &mut tensors)? } else { None };
            let error = error.map(|error| Start::free(known.as_ref(), &error)).transpose()?;
            let sample = sample.map(|sample| Start::shown(known.as_ref(), &sample)).transpose()?;
            tensors.set_solver(velocity, sample, error);
            let symbols = ended(session.end_step(&mut tensors)?);
            Ok::<_, Error>((stepper.leave(step, &mut tensors)?, symbols))
        })?;
        strip.push(symbols);
        let Some(next) = next else { break };
        latents = next;
        tensors.watch(&latents)?;
        // A GPU goes on by itself; without this, its time would be counted to the step after.
        latents.device().synchronize()?;

        let seconds_of_step = begun.elapsed().as_secs_f64();
        clocks.push((seconds_of_step, seconds));
        if on_step(StepDone { index: step, seconds: seconds_of_step, strip: &strip }).is_break() {
            return Err(Error::Cancelled { step: step + 1, steps: run.steps.len() });
        }
    }
    let records = session.finish(&mut tensors)?;
    tensors.check()?;
    let steps = records.iter().zip(clocks).map(|(record, clock)| report(run, spans, record, clock)).collect();
    Ok(Sampled { latents: Start::shown(known.as_ref(), &latents)?, strip, steps, records })
}

/// What ran of every branch.
fn ended(record: &StepRecord) -> Vec<Ran> {
    record.branches.iter().map(BranchRecord::ran).collect()
}

/// What is reported of a step that took `seconds`, and so many of each branch, under a policy with a cut of so many
/// spans.
fn report(run: &Run, spans: usize, record: &StepRecord, (seconds, of_branches): (f64, Vec<f64>)) -> StepReport {
    let Step { timestep, sigma } = run.steps[record.step];
    let mut branches = BTreeMap::new();
    for (index, (branch, seconds)) in record.branches.iter().zip(of_branches).enumerate() {
        let is_of = |scope: Scope| match scope {
            Scope::Step => index == 0,
            Scope::Branch(b) | Scope::Span { branch: b, .. } => b == branch.branch,
        };
        let seen = record.measured.iter().filter(|(scope, ..)| is_of(*scope)).map(|(scope, quantity, value)| {
            let label = match scope {
                Scope::Span { span, .. } if spans > 1 => format!("[{span}]"),
                _ => String::new(),
            };
            (quantity.name() + &label, *value)
        });
        let report = BranchReport {
            decision: branch.ran(),
            units_computed: branch.computed(),
            units_reused: branch.units.len() - branch.computed(),
            units: (branch.ran() == Ran::Mixed)
                .then(|| branch.units.iter().map(|&ran| if ran { 'S' } else { '.' }).collect()),
            seconds,
            seen: seen.collect(),
        };
        branches.insert(branch.branch.name().into_owned(), report);
    }
    StepReport { index: record.step, timestep: timestep.0, sigma: sigma.0, seconds, branches }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::Device;
    use navicache_control::cache::references::Place;
    use navicache_control::cache::{self, CacheConfig, CacheSpec, Quantity};
    use navicache_control::replay::{self, Measures};
    use navicache_control::solver::SolverKind;
    use navicache_models::{Conditioned, Denoiser, Features, Part, Signal, Unit};

    use super::*;

    const BLOCKS: usize = 4;

    /// The smallest denoiser: each of its eight units adds an eighth of a constant to what it sees; 10 for one branch
    /// and 20 for the other. It counts the units that run.
    struct AddConstant(Vec<Unit>, AtomicUsize);

    impl AddConstant {
        fn new() -> Self {
            let parts = [Part::SelfAttn, Part::Mlp];
            AddConstant(
                (0..BLOCKS).flat_map(|block| parts.map(|part| Unit { block, part })).collect(),
                AtomicUsize::new(0),
            )
        }
    }

    impl Denoiser for AddConstant {
        type Cond = f64;
        type State = (Tensor, f64);

        fn units(&self) -> &[Unit] {
            &self.0
        }

        fn patch(&self) -> [usize; 3] {
            [1, 1, 1]
        }

        fn width(&self) -> usize {
            1
        }

        fn begin(&self, latents: &Tensor, _: f64, constant: &f64) -> navicache_models::Result<(Tensor, f64)> {
            Ok((latents.clone(), *constant))
        }

        fn run_unit(&self, _: usize, (x, constant): &mut (Tensor, f64)) -> navicache_models::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            *x = (&*x + *constant / self.0.len() as f64)?;
            Ok(())
        }

        fn finish(&self, state: (Tensor, f64)) -> navicache_models::Result<Tensor> {
            Ok(state.0)
        }

        fn thinned(&self, constant: &f64, _: &[Tensor; 3]) -> navicache_models::Result<f64> {
            Ok(*constant)
        }

        fn signal(&self, _: Signal, state: &(Tensor, f64)) -> navicache_models::Result<Tensor> {
            Ok(state.0.flatten_all()?.unsqueeze(1)?)
        }

        fn features(&self, state: &(Tensor, f64)) -> Features {
            Features { video: state.0.clone(), text: None }
        }

        fn set_features(&self, state: &mut (Tensor, f64), to: Features) {
            state.0 = to.video;
        }
    }

    /// A method, and a run of it.
    fn configured(cache: &str, steps: usize) -> (CacheConfig, Run) {
        let schedule = SolverKind::Euler.schedule(steps, 3.0, 1000).unwrap();
        let part = |part| if part == Part::SelfAttn { cache::Part::SelfAttn } else { cache::Part::Mlp };
        let units = AddConstant::new().0.iter().map(|u| cache::Unit { block: u.block, part: part(u.part) }).collect();
        let branches = vec![Branch::Cond, Branch::Uncond];
        let run = Run { family: "wan".to_string(), steps: schedule.steps, branches, units, segments: vec![] };
        let config = cache.parse::<CacheSpec>().unwrap().resolve("wan").unwrap_or_else(|e| panic!("{cache}: {e}"));
        config.method().check_run(&run).unwrap_or_else(|e| panic!("{cache}: {e}"));
        (config, run)
    }

    /// Runs it; says how many units ran.
    fn run(cache: &str, steps: usize) -> (Sampled, usize) {
        let denoiser = Arc::new(AddConstant::new());
        let branches = [(Branch::Cond, 3.0), (Branch::Uncond, -2.0)];
        let latents = Tensor::new(&[0.5f32, -1.0, 2.0, 0.25], &Device::Cpu).unwrap().reshape((1, 1, 1, 2, 2)).unwrap();
        let (config, control_run) = configured(cache, steps);
        let go_on = &mut |_: StepDone| ControlFlow::Continue(());
        let policy = config.method().start(&control_run);
        let sampled = sample(
            &Conditioned::new(denoiser.clone(), vec![10.0, 20.0]),
            &branches,
            Start { latents, known: None },
            &control_run,
            SolverKind::Euler,
            policy,
            go_on,
        )
        .unwrap();
        let units = denoiser.1.load(Ordering::Relaxed);
        (sampled, units)
    }

    fn values(sampled: &Sampled) -> Vec<f32> {
        sampled.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    }

    fn close(a: &Sampled, b: &Sampled, what: &str) {
        let worst = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-3, "{what}: {worst}");
    }

    #[test]
    fn each_branch_reuses_its_own_residual() {
        // The residuals of this denoiser are exactly 10 and 20, so that a reused step equals a computed one if and only
        // if each branch gets its own back.
        let (plain, units) = run("none", 8);
        assert_eq!((plain.strip.to_string(), units), ("SS|".repeat(8), 16 * 8));
        let (cached, units) = run("navicache,threshold=100,align_steps=2", 8);
        assert_eq!((cached.strip.to_string().as_str(), units), ("SS|SS|..|..|..|..|..|SS|", 6 * 8));
        close(&plain, &cached, "navicache");
    }

    /// Every method with settings that make it reuse something of this denoiser.
    const EAGER: &[(&str, &str)] = &[
        ("easycache", "easycache,threshold=100,warmup_steps=2"),
        ("navicache", "navicache,threshold=100,align_steps=2,reuse=linear"),
        ("navicache", "navicache,threshold=100,align_steps=2,reuse=from_cond"),
        ("precisecache", "precisecache,threshold=100,trial_size=1,trial_frames=1,max_run=3,reuse=residual"),
        ("precisecache", "precisecache,threshold=0,cached_blocks=0.5"),
        ("mixcache", "mixcache,threshold=100,granularity=step"),
        ("mixcache", "mixcache,threshold=100,granularity=cfg"),
        ("mixcache", "mixcache,threshold=100,granularity=block"),
        ("teacache", "teacache,threshold=100,coefficients=[0,0,0,1,0],signal=modulated_input"),
        ("magcache", "magcache,threshold=100,max_run=3"),
        ("pab", "pab"),
        ("fbcache", "fbcache,threshold=100,max_run=4"),
        ("fbcache", "fbcache,threshold=100,max_run=4,reuse=two_anchors"),
        ("dbcache", "dbcache,threshold=100,first_blocks=1,last_blocks=1,warmup_steps=2,reuse=taylor"),
        ("taylorseer", "taylorseer"),
        ("taylorseer", "taylorseer,level=features,order=2"),
        ("taylorseer", "taylorseer,level=units"),
        ("fastercache", "fastercache,attention_below=1000,uncond_below=1000,low_growth=1,high_growth=1"),
        ("dicache", "dicache,threshold=100"),
        ("seacache", "seacache,threshold=100,max_run=3"),
        ("tafc", "tafc,threshold=100"),
        ("tafc", "tafc,threshold=100,reuse=quadratic"),
        ("bwcache", "bwcache,threshold=100,reuse=residual"),
        ("adacache", "adacache,codebook=steps100,threshold=100"),
        ("trend", "trend,threshold=100,warmup_steps=3"),
        ("trend", "trend,threshold=100,warmup_steps=3,reuse=corrected"),
        ("stride", "stride,threshold=100,warmup_steps=3,reuse=corrected"),
        ("stride", "stride,threshold=100,warmup_steps=3,reuse=step_over"),
    ];

    #[test]
    fn every_method_reuses_and_counts_what_ran() {
        let steps = 30;
        let (plain, all) = run("none", steps);
        for (name, cache) in EAGER {
            let (cached, units) = run(cache, steps);
            // Residuals are constant here, so whatever is approximated from them is right, whichever form it takes.
            // What outputs are extrapolated from is not constant, and what is left to the solver is no residual.
            let by_solver = cache.contains("reuse=corrected") || cache.contains("reuse=step_over");
            if *cache != "taylorseer" && !by_solver {
                close(&plain, &cached, cache);
            }
            let counted: usize = cached.steps.iter().flat_map(|s| s.branches.values()).map(|b| b.units_computed).sum();
            assert!(counted < all, "{cache}: {}", cached.strip);
            // PreciseCache's trial runs units too, which are no units of the video.
            let trials = if *name == "precisecache" { steps * BLOCKS * 2 } else { 0 };
            assert_eq!(counted + trials, units, "{cache}");
        }
        for about in CacheConfig::METHODS {
            let covered = EAGER.iter().any(|(name, _)| *name == about.name);
            assert!(covered || ["none", "schedule"].contains(&about.name), "{}", about.name);
        }
    }

    /// What was measured in the engine, given again.
    struct Recorded<'a>(&'a [StepRecord]);

    impl Measures for Recorded<'_> {
        fn measure(&mut self, place: Place, quantity: Quantity, _: Option<usize>, _: &[usize]) -> Option<f64> {
            let measured = &self.0[place.at.step].measured;
            measured.iter().find(|(s, q, _)| (*s, *q) == (place.at.scope, quantity)).map(|(.., value)| *value)
        }
    }

    #[test]
    fn the_engine_and_a_replay_of_its_measurements_decide_the_same() {
        for (_, cache) in EAGER {
            let (sampled, _) = run(cache, 30);
            let (config, control_run) = configured(cache, 30);
            let played = replay::play(&control_run, config.method(), &mut Recorded(&sampled.records)).unwrap();
            assert_eq!(played.strip(), sampled.strip, "{cache}");
            for (played, ran) in played.steps.iter().zip(&sampled.records) {
                assert_eq!(played.branches, ran.branches, "{cache}");
                assert_eq!(played.approximated, ran.approximated, "{cache}: the same weights of the same steps");
            }
        }
    }

    #[test]
    fn a_strip_can_be_forced() {
        let (cached, _) = run("navicache,threshold=100,align_steps=2,max_run=3", 9);
        let (forced, _) = run(&format!("schedule,strip={}", cached.strip), 9);
        assert_eq!(values(&forced), values(&cached));
        assert_eq!(forced.strip, cached.strip);
    }

    #[test]
    fn off_is_the_uncached_run_bit_for_bit() {
        let plain = values(&run("none", 20).0);
        for cache in [
            "navicache,threshold=0,align_steps=0",
            "easycache,threshold=0,warmup_steps=0",
            "precisecache,threshold=0",
            "mixcache,threshold=0",
            "mixcache,interval=1",
            "teacache,threshold=0",
            "magcache,threshold=0,warmup=0",
            "pab,self_range=1,cross_range=1",
            "fbcache,threshold=0",
            "dbcache,threshold=0,first_blocks=1,warmup_steps=0",
            "taylorseer,interval=1",
            "taylorseer,interval=1,level=units",
            "fastercache,attention_interval=1,uncond_interval=1",
            "dicache,threshold=0,warmup=0",
            "seacache,threshold=0",
            "tafc,threshold=0",
            "bwcache,threshold=0",
            "adacache,threshold=0",
            "trend,threshold=0,warmup_steps=0",
            "trend,threshold=0,warmup_steps=0,reuse=corrected",
            "stride,threshold=0,warmup_steps=0,reuse=corrected",
        ] {
            assert_eq!(values(&run(cache, 20).0), plain, "{cache}");
        }
    }

    #[test]
    fn what_was_seen_is_reported() {
        let (sampled, _) = run("navicache,threshold=100,align_steps=2", 4);
        let seen = |step: usize, branch: &str| {
            sampled.steps[step].branches[branch].seen.keys().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(seen(0, "cond"), ["output_magnitude"]);
        assert_eq!(seen(2, "cond"), ["input_change_since_visit"]);
        assert_eq!(seen(3, "cond").len(), 4);
        assert!(seen(3, "uncond").is_empty());
        let (sampled, _) = run("fbcache", 4);
        assert!(
            sampled.steps[1].branches["uncond"].seen.contains_key("span_residual_relative_change_since_compute[0]")
        );
    }
}

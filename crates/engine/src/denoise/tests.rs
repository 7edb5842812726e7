//! Sampling, with the smallest denoiser there is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use navicache_control::cache::references::Place;
use navicache_control::cache::{self, CacheConfig, CacheSpec, Quantity, Run, StepRecord};
use navicache_control::guidance::Branch;
use navicache_control::schedule::Schedule;
use navicache_control::solver::SolverKind;
use navicache_models::{Branches, Conditioned, Denoiser, Features, Part, Signal, Unit};
use navicache_replay::player::{self, Measures};
use navicache_replay::samples::SAMPLES;

use super::sampler::{Clock, Sampled, Sampler, Setup, Start, State};
use crate::draws::{Draws, Order};

const BLOCKS: usize = 4;

/// The smallest denoiser: each of its eight units adds an eighth of a constant to what it sees; 10 for one branch
/// and 20 for the other. It counts the units that run.
struct AddConstant(Vec<Unit>, AtomicUsize);

impl AddConstant {
    fn new() -> Self {
        let parts = [Part::SelfAttn, Part::Mlp];
        AddConstant((0..BLOCKS).flat_map(|block| parts.map(|part| Unit { block, part })).collect(), AtomicUsize::new(0))
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
fn configured(cache: &str, steps: usize, solver: SolverKind) -> (CacheConfig, Run) {
    let schedule = solver.schedule(steps, 3.0, 1000).unwrap();
    let part = |part| if part == Part::SelfAttn { cache::Part::SelfAttn } else { cache::Part::Mlp };
    let units = AddConstant::new().0.iter().map(|u| cache::Unit { block: u.block, part: part(u.part) }).collect();
    let branches = vec![Branch::Cond, Branch::Uncond];
    let run = Run { family: "wan".to_string(), steps: schedule.steps, branches, units, segments: vec![] };
    let config = cache.parse::<CacheSpec>().unwrap().resolve("wan").unwrap_or_else(|e| panic!("{cache}: {e}"));
    config.method().check_run(&run).unwrap_or_else(|e| panic!("{cache}: {e}"));
    (config, run)
}

/// Those of every step.
fn branches(steps: usize) -> Vec<Vec<(Branch, f64)>> {
    vec![vec![(Branch::Cond, 3.0), (Branch::Uncond, -2.0)]; steps]
}

static DRAWS: Draws = Draws { seed: 0, shape: [1, 1, 1, 2, 2], order: Order::ChannelsFirst, before: 0, given: false };

/// A run's steps and its branches at each.
fn around(run: &Run) -> (Schedule, Vec<Vec<(Branch, f64)>>) {
    (Schedule::of(run.steps.clone()), branches(run.steps.len()))
}

fn of_run<'a>(
    denoiser: &'a dyn Branches,
    run: &'a Run,
    solver: SolverKind,
    (schedule, branches): &'a (Schedule, Vec<Vec<(Branch, f64)>>),
) -> Setup<'a> {
    Setup { denoiser, branches, run, solver, schedule, draws: &DRAWS }
}

fn start() -> Start {
    let latents = Tensor::new(&[0.5f32, -1.0, 2.0, 0.25], &Device::Cpu).unwrap().reshape((1, 1, 1, 2, 2)).unwrap();
    Start { latents, known: None }
}

/// Runs it; says how many units ran.
fn run(cache: &str, steps: usize) -> (Sampled, usize) {
    let constant = Arc::new(AddConstant::new());
    let denoiser = Conditioned::new(constant.clone(), vec![10.0, 20.0]);
    let (config, run) = configured(cache, steps, SolverKind::Euler);
    let course = around(&run);
    let setup = of_run(&denoiser, &run, SolverKind::Euler, &course);
    let mut sampler = Sampler::begin(setup, start(), config.method().start(&run));
    while sampler.step().unwrap().is_some() {}
    (sampler.finish().unwrap(), constant.1.load(Ordering::Relaxed))
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

/// Settings that make every method reuse something of this denoiser.
fn strong() -> impl Iterator<Item = &'static str> {
    SAMPLES.iter().flat_map(|sample| sample.strong.iter().copied())
}

#[test]
fn every_method_reuses_and_counts_what_ran() {
    let steps = 30;
    let (plain, all) = run("none", steps);
    for cache in strong() {
        let (cached, units) = run(cache, steps);
        // Residuals are constant here, so whatever is approximated from them is right, whichever form it takes.
        // What outputs are extrapolated from is not constant, and what is left to the solver is no residual.
        let by_solver = cache.contains("reuse=corrected") || cache.contains("reuse=step_over");
        if cache != "taylorseer" && !by_solver {
            close(&plain, &cached, cache);
        }
        let counted: usize = cached.steps.iter().flat_map(|s| s.branches.values()).map(|b| b.units_computed).sum();
        assert!(counted < all, "{cache}: {}", cached.strip);
        // PreciseCache's trial runs units too, which are no units of the video.
        let trials = if cache.starts_with("precisecache") { steps * BLOCKS * 2 } else { 0 };
        assert_eq!(counted + trials, units, "{cache}");
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
    for cache in strong() {
        let (sampled, _) = run(cache, 30);
        let (config, control_run) = configured(cache, 30, SolverKind::Euler);
        let played = player::play(&control_run, config.method(), &mut Recorded(&sampled.records)).unwrap();
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
    let off = SAMPLES.iter().flat_map(|sample| sample.off).filter(|cache| !cache.contains("reuse=step_over"));
    for cache in off {
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
    assert!(sampled.steps[1].branches["uncond"].seen.contains_key("span_residual_relative_change_since_compute[0]"));
}

/// A state as a file has it: text, and the bits of its tensors by name.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    text: String,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u32>)>,
}

fn written(state: State) -> Written {
    let mut tensors = BTreeMap::new();
    let named = state.map(&mut |name, tensor: Tensor| {
        let bits = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect();
        assert!(tensors.insert(name.to_string(), (tensor.dims().to_vec(), bits)).is_none(), "{name}: two of a name");
        Ok::<_, candle_core::Error>(name.to_string())
    });
    let mut named = named.unwrap();
    named.clocks.iter_mut().for_each(|clock| *clock = Clock { step: 0.5, branches: vec![0.125; 2] });
    Written { text: serde_json::to_string(&named).unwrap(), tensors }
}

fn read(Written { text, tensors }: &Written) -> State {
    let named: State<String> = serde_json::from_str(text).unwrap();
    named
        .map(&mut |_, name: String| {
            let (shape, bits) = &tensors[&name];
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)
        })
        .unwrap()
}

/// What a run leaves, in every bit: its result, and all that it remembered before its last step.
#[derive(Debug, PartialEq)]
struct Left {
    latents: Vec<u32>,
    strip: String,
    records: String,
    remembered: Option<Written>,
}

/// Runs the rest of a generation; `on_state` sees all that it is between any two steps.
fn rest(mut sampler: Sampler, on_state: Option<&mut dyn FnMut(Written)>) -> Left {
    let steps = sampler.steps();
    let mut on_state = on_state;
    let mut remembered = None;
    loop {
        if sampler.done() + 1 == steps {
            remembered = Some(written(sampler.save().unwrap()));
        }
        if sampler.step().unwrap().is_none() {
            break;
        }
        if let Some(on_state) = &mut on_state {
            on_state(written(sampler.save().unwrap()));
        }
    }
    let Sampled { latents, strip, records, .. } = sampler.finish().unwrap();
    let latents = latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    Left { latents, strip: strip.to_string(), records: serde_json::to_string(&records).unwrap(), remembered }
}

#[test]
fn a_run_that_is_cut_after_any_step_goes_on_bit_for_bit() {
    let steps = 14;
    let denoiser = Conditioned::new(Arc::new(AddConstant::new()), vec![10.0, 20.0]);
    for cache in strong() {
        for &solver in SolverKind::ALL {
            if cache.contains("reuse=step_over") && !solver.steps_over() {
                continue;
            }
            let (config, run) = configured(cache, steps, solver);
            let course = around(&run);
            let setup = of_run(&denoiser, &run, solver, &course);
            let policy = || config.method().start(&run);
            let whole = rest(Sampler::begin(setup, start(), policy()), None);
            let mut states = Vec::new();
            let saved = rest(Sampler::begin(setup, start(), policy()), Some(&mut |state| states.push(state)));
            assert!(saved == whole, "{cache}, {solver}: saving changes the run");
            assert_eq!(states.len(), steps);
            for (done, state) in states.iter().enumerate() {
                let sampler = Sampler::resume(setup, start(), policy(), read(state)).unwrap();
                assert_eq!(sampler.done(), done + 1);
                let resumed = rest(sampler, None);
                assert!(resumed.strip == whole.strip, "{cache}, {solver}, {done}: {}", resumed.strip);
                // After the last step but one there is nothing left to compare but what was read.
                assert!(resumed.records == whole.records, "{cache}, {solver}, {done}: records");
                assert!(resumed.latents == whole.latents, "{cache}, {solver}, {done}: latents");
                let remembers = done + 1 < steps;
                assert!(!remembers || resumed.remembered == whole.remembered, "{cache}, {solver}, {done}: memory");
            }
        }
    }
}

#[test]
fn a_state_of_another_run_is_refused() {
    let denoiser = Conditioned::new(Arc::new(AddConstant::new()), vec![10.0, 20.0]);
    let (config, run) = configured("stride,threshold=100,warmup_steps=3,reuse=corrected", 9, SolverKind::UniPc);
    let course = around(&run);
    let setup = of_run(&denoiser, &run, SolverKind::UniPc, &course);
    let mut sampler = Sampler::begin(setup, start(), config.method().start(&run));
    (0..6).for_each(|_| assert!(sampler.step().unwrap().is_some()));
    let state = written(sampler.save().unwrap());
    let refused = |cache: &str, change: &dyn Fn(&mut State)| {
        let mut state = read(&state);
        change(&mut state);
        let (config, run) = configured(cache, 9, SolverKind::UniPc);
        let course = around(&run);
        let setup = of_run(&denoiser, &run, SolverKind::UniPc, &course);
        let refused = Sampler::resume(setup, start(), config.method().start(&run), state);
        refused.err().unwrap_or_else(|| panic!("{cache} goes on")).to_string()
    };
    let own = "stride,threshold=100,warmup_steps=3,reuse=corrected";
    let message = refused(own, &|state| state.latents = state.latents.narrow(3, 0, 1).unwrap());
    assert_eq!(message, "latents: [1, 1, 1, 1, 2] was saved, [1, 1, 1, 2, 2] here");
    let message = refused(own, &|state| drop(state.clocks.pop()));
    assert!(message.contains("steps: [0, 1, 2, 3, 4, 5] was saved, the first 5 here"), "{message}");
    let message = refused("stride,threshold=1e-9,warmup_steps=3,reuse=corrected", &|_| ());
    assert!(message.contains("the decision about Step of step 3"), "{message}");
    let message = refused("stride,threshold=100,warmup_steps=3,reuse=step_over", &|_| ());
    assert!(message.contains("what the solver goes back to"), "{message}");
}

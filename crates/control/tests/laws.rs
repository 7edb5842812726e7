//! Laws that every method keeps, whatever it measures.

mod common;
#[path = "common/toy.rs"]
mod toy;

use common::{method, play, play_method};
use navicache_control::cache::curve::{About, Curve};
use navicache_control::cache::{CacheConfig, CacheSpec, Measure, Method, Quantity, Scope};
use navicache_control::guidance::Branch;
use navicache_control::solver::SolverKind;
use navicache_control::strip::Ran;
use navicache_control::target::Steered;
use navicache_replay::player::Played;
use navicache_replay::samples::SAMPLES;
use proptest::prelude::*;

/// Every method that measures, with the option that switches it off at `0` put at a strength, and as much freedom as
/// its guard allows; and `none`.
fn methods(strength: f64) -> Vec<CacheConfig> {
    let texts = SAMPLES.iter().flat_map(|sample| sample.scaled);
    std::iter::once(&"none").chain(texts).map(|text| method(&text.replace('X', &strength.to_string()))).collect()
}

/// Whether nothing was reused at all.
fn all_full(played: &Played) -> bool {
    (0..played.steps.len()).all(|step| played.is_full(step))
}

/// Settings that follow a fixed schedule: what they are off at, and something that reuses.
const SCHEDULED: &[(&str, &str)] = &[
    ("pab,self_range=1,cross_range=1", "pab"),
    ("taylorseer,interval=1", "taylorseer,interval=3,warmup_steps=1"),
    ("taylorseer,interval=1,level=units", "taylorseer,level=units,order=2"),
    ("fastercache,attention_interval=1,uncond_interval=1", "fastercache,uncond_below=1000,attention_below=1000"),
    ("mixcache,interval=1", "mixcache,threshold=1e9"),
    ("precisecache,threshold=0", "precisecache,threshold=0,cached_blocks=0.5"),
];

/// A reference point exists only from the second visit on; a position and a line's error from the third.
fn exists(step: usize, quantity: Quantity) -> bool {
    step >= match quantity.measure {
        Measure::Magnitude | Measure::Norm => 0,
        Measure::AnchorPosition | Measure::LineError => 2,
        _ => 1,
    }
}

/// Values that differ by step, scope and quantity.
fn from_table<'a>(values: &'a [f64]) -> impl FnMut(usize, Scope, Quantity) -> Option<f64> + 'a {
    |step, scope, quantity| {
        let scope = match scope {
            Scope::Step => 0,
            Scope::Branch(branch) => 1 + usize::from(branch != Branch::Cond),
            Scope::Span { branch, span } => 3 + 2 * span + usize::from(branch != Branch::Cond),
        };
        let index = step * 31 + scope * 7 + quantity.name().len();
        exists(step, quantity).then(|| values[index % values.len()])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn threshold_zero_never_reuses(values in prop::collection::vec(0.0f64..2.0, 64), steps in 1usize..60) {
        for config in methods(0.0) {
            let played = play(&config, steps, &mut from_table(&values));
            prop_assert!(all_full(&played), "{config:?}: {:?}", played.strip().to_string());
        }
    }

    #[test]
    fn first_and_last_steps_are_computed(values in prop::collection::vec(0.0f64..2.0, 64), steps in 1usize..60) {
        for config in methods(1e9) {
            let played = play(&config, steps, &mut from_table(&values));
            let guard = config.method().guard(steps);
            prop_assert!(played.is_full(0));
            prop_assert!((0..guard.first_steps.min(steps)).all(|step| played.is_full(step)), "{config:?}");
            prop_assert!((0..guard.last_steps.min(steps)).all(|i| played.is_full(steps - 1 - i)), "{config:?}");
        }
    }

    #[test]
    fn same_inputs_same_decisions(values in prop::collection::vec(0.0f64..2.0, 64), threshold in 0.0f64..1.0) {
        for config in methods(threshold) {
            let play = || play(&config, 50, &mut from_table(&values));
            prop_assert_eq!(play(), play());
        }
    }

    #[test]
    fn values_are_made_of_what_was_kept_before(values in prop::collection::vec(0.0f64..2.0, 64), threshold in 0.0f64..10.0) {
        for config in methods(threshold) {
            for made_up in play(&config, 50, &mut from_table(&values)).approximated() {
                prop_assert!(made_up.anchors.iter().all(|&anchor| anchor < made_up.step), "{made_up:?}");
                let Some(kept) = made_up.approx.kept(made_up.scope) else { continue }; // left to the solver
                prop_assert!(!made_up.weights.is_empty(), "{config:?}: {made_up:?}");
                prop_assert!(made_up.weights.iter().all(|w| w.is_finite()), "{config:?}: {made_up:?}");
                prop_assert!(made_up.weights.len() <= made_up.anchors.len().min(made_up.approx.depth()), "{made_up:?}");
                let asks = config.method().start(&common::run(50)).asks().clone();
                let question = asks.question(made_up.scope).unwrap();
                let asked = |a: &navicache_control::cache::Approx| a.kept(made_up.scope) == Some(kept) && a.depth() >= made_up.approx.depth();
                prop_assert!(question.to_reuse.iter().any(asked), "{made_up:?} was not asked to be kept");
            }
        }
    }

    #[test]
    fn the_longest_run_is_kept(max_run in 1usize..5) {
        for name in ["easycache", "navicache", "teacache", "magcache", "fbcache", "dbcache,first_blocks=2", "dicache", "seacache", "trend"] {
            let config = method(&format!("{name},threshold=1e9,max_run={max_run}"));
            let played = play(&config, 50, &mut |step, _, q| exists(step, q).then_some(1.0));
            let full: Vec<bool> = (0..50).map(|step| played.is_full(step)).collect();
            let longest = full.split(|&f| f).map(<[bool]>::len).max().unwrap_or(0);
            prop_assert_eq!(longest, max_run, "{}", name);
        }
    }
}

#[test]
fn schedules_are_off_at_one_and_reuse_otherwise() {
    for (off, on) in SCHEDULED {
        let played = |text: &str| play(&method(text), 40, &mut |step, _, q| exists(step, q).then_some(0.5));
        assert!(all_full(&played(off)), "{off}");
        assert!(played(on).approximated().next().is_some(), "{on}");
        assert!(played(on).is_full(0), "{on}");
    }
}

#[test]
fn large_thresholds_reuse() {
    for config in methods(1e9).into_iter().filter(|c| c.method().name() != "none") {
        let played = play(&config, 50, &mut |step, _, q| exists(step, q).then_some(0.5));
        assert!(played.approximated().next().is_some(), "{config:?}");
    }
}

#[test]
fn broken_measurements_lead_to_compute() {
    for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for config in methods(1e9) {
            let name = config.method().name().to_string();
            let played = play(&config, 30, &mut |step, _, q| exists(step, q).then_some(broken));
            // MagCache measures nothing: its table decides.
            assert!(
                all_full(&played) || name == "magcache",
                "{config:?} with {broken}: {:?}",
                played.strip().to_string()
            );
        }
    }
    // A zero output leaves no scale to compare a change with: a change relative to it is infinite or no number.
    let relative = |q: Quantity| {
        matches!(
            q.measure,
            Measure::RelativeChangeSinceVisit
                | Measure::RelativeChangeSinceCompute
                | Measure::CosineSinceCompute
                | Measure::AnchorPosition
                | Measure::LineError
        )
    };
    for config in methods(1e9).into_iter().filter(|c| !["magcache", "precisecache"].contains(&c.method().name())) {
        let value = |q: Quantity| match q.measure {
            Measure::Magnitude | Measure::Norm => 0.0,
            _ if relative(q) => f64::NAN,
            _ => 1.0,
        };
        let played = play(&config, 30, &mut |step, _, q| exists(step, q).then(|| value(q)));
        assert!(all_full(&played), "{config:?}: {:?}", played.strip().to_string());
    }
}

#[test]
fn a_broken_measurement_is_got_over() {
    // One step measures nonsense; later ones reuse again.
    for config in methods(1e9).into_iter().filter(|c| c.method().name() != "none") {
        let played =
            play(&config, 60, &mut |step, _, q| exists(step, q).then_some(if step == 12 { f64::NAN } else { 0.5 }));
        assert!(played.approximated().any(|made_up| made_up.step > 13), "{config:?}: {:?}", played.strip().to_string());
    }
}

#[test]
fn any_number_of_steps_works() {
    for steps in [1, 2, 3, 1000] {
        let scheduled = SCHEDULED.iter().flat_map(|(off, on)| [method(off), method(on)]);
        for config in methods(0.05).into_iter().chain(methods(1e9)).chain(scheduled) {
            let Played { steps: played } = play(&config, steps, &mut |step, _, q| exists(step, q).then_some(0.1));
            assert_eq!(played.len(), steps);
        }
    }
}

#[test]
fn nothing_is_reused_before_it_was_computed() {
    for config in methods(1e9) {
        // even when a measurement claims a reference point that cannot exist
        assert!(play(&config, 5, &mut |_, _, _| Some(0.0)).is_full(0), "{config:?}");
    }
}

/// Every method at a strength where it reuses some steps of the toy and computes others.
fn cut_methods() -> Vec<CacheConfig> {
    let scheduled = SCHEDULED.iter().map(|(_, on)| method(on));
    [0.02, 0.3, 1e9].into_iter().flat_map(methods).chain(scheduled).collect()
}

#[test]
fn a_run_that_is_cut_after_any_step_goes_on_bit_for_bit() {
    // In the second, another network takes over on the way.
    let one = common::run(14);
    let two = navicache_control::cache::Run { segments: vec![7], ..one.clone() };
    let mut reused = 0;
    let runs = cut_methods().into_iter().map(|config| (config, &one));
    for (config, run) in runs.chain(methods(1e9).into_iter().map(|config| (config, &two))) {
        for &solver in SolverKind::ALL {
            let method = config.method();
            let mut cuts = Vec::new();
            let whole = toy::generate(run, method, solver, None, &|_| false, |_, _| {});
            // Cut after every step, each time all is dropped and read again.
            let chained = toy::generate(run, method, solver, None, &|_| true, |step, cut| {
                cuts.push((step, cut.clone()));
            });
            if let Some(differs) = chained.differs(&whole) {
                panic!("{config:?}, {solver}, cut after every step: {differs}");
            }
            // Cut once, after each step.
            for (step, cut) in cuts.iter().filter(|_| solver == SolverKind::UniPc) {
                let rest = toy::generate(run, method, solver, Some((*step, cut)), &|_| false, |_, _| {});
                if let Some(differs) = rest.differs(&whole) {
                    panic!("{config:?}, {solver}, cut after {step} steps: {differs}");
                }
            }
            reused += usize::from(whole.records.iter().any(|step| !step.approximated.is_empty()));
        }
    }
    assert!(reused > 100, "only {reused} runs reused anything");
}

#[test]
fn a_run_that_somebody_else_leads_is_the_same() {
    let one = common::run(14);
    let two = navicache_control::cache::Run { segments: vec![7], ..one.clone() };
    let mut mixed = 0;
    for config in cut_methods() {
        for (run, &solver) in [&one, &two].into_iter().zip(SolverKind::ALL) {
            let whole = toy::generate(run, config.method(), solver, None, &|_| false, |_, _| {}).records;
            let led = toy::led(run, config.method(), solver);
            let text = |records: &[_]| serde_json::json!(records).to_string();
            assert_eq!(text(&led), text(&whole), "{config:?}");
            mixed += led.iter().flat_map(|step| &step.branches).filter(|branch| branch.ran() == Ran::Mixed).count();
        }
    }
    assert!(mixed > 100, "only {mixed} forwards were computed in part");
}

#[test]
fn a_state_that_is_not_of_the_run_is_refused_by_name() {
    let run = common::run(12);
    let config = method("navicache,threshold=9,align_steps=2,max_run=2,reuse=linear");
    let mut last = None;
    toy::generate(&run, config.method(), SolverKind::UniPc, None, &|_| true, |step, cut| {
        if step == 8 {
            last = Some(cut.clone());
        }
    });
    let cut = last.unwrap();
    let start = |config: &CacheConfig| config.method().try_start(&run).unwrap();
    assert!(toy::resumed(&run, start(&config), &cut).is_ok());
    let refused = |from: &str, to: &str, part: &str| {
        let session = cut.session.replacen(from, to, 1);
        assert!(session != cut.session, "{from} is not in the state");
        let changed = toy::Cut { session, ..cut.clone() };
        let message = toy::resumed(&run, start(&config), &changed).err().unwrap_or_else(|| panic!("{from} -> {to}"));
        assert!(message.contains(part), "{message}");
    };
    refused("\"decision\":{\"reuse\":\"linear\"}", "\"decision\":\"compute\"", "the decision about Step of step");
    refused("\"step\":7", "\"step\":12", "step 12 was saved, 12 steps here");
    refused("[\"cond\",\"uncond\"]", "[\"cond\"]", "branches: cond was saved, cond, uncond here");
    refused("{\"scope\":\"step\"", "{\"scope\":{\"span\":{\"branch\":\"cond\",\"span\":3}}", "0 spans here");
    refused("SSSSSSSSSSSSSSSSSS", "SS", "cond of 2 units");
    refused("\"stocked\":[{\"branch\":\"cond\"", "\"stocked\":[{\"branch\":\"uncond\"", "uncond.residual twice");
    refused("\"kept\":{\"prediction\":\"residual\"}", "\"kept\":\"cfg_difference\"", "2 kept was saved, 0 kept here");
    refused("null,\"subject\":\"input\"", "null,\"subject\":\"velocity\"", "visited was saved, 0 visited here");
    refused("\"said\"", "\"unsaid\"", "unknown field");
    // Another threshold decides otherwise, another method asks otherwise.
    for other in ["navicache,threshold=0.0001,align_steps=2,reuse=linear", "stride"] {
        let message = toy::resumed(&run, start(&method(other)), &cut).err().unwrap_or_else(|| panic!("{other}"));
        assert!(message.contains(" was saved, "), "{message}");
    }
}

#[test]
fn branches_that_were_learnt_are_part_of_the_state() {
    let guess = common::run(10);
    let branches = [Branch::Uncond];
    let config = || method("easycache,threshold=0.5,warmup_steps=2");
    let boxed = |config: CacheConfig| -> Box<dyn navicache_control::cache::Method + Send> {
        let CacheConfig::EasyCache(config) = config else { panic!("not easycache") };
        Box::new(config)
    };
    let state = toy::learnt(&guess, boxed(config()), &branches, 6);
    assert_eq!(state.branches(), branches);
    assert_eq!(state.records().len(), 6);
    let run = navicache_control::cache::Run { branches: state.branches().to_vec(), ..guess };
    let policy = config().method().try_start(&run).unwrap();
    let resumed = navicache_control::cache::walk::Session::<f64, f64>::resume(run, policy, state.clone()).unwrap();
    assert_eq!(resumed.records(), state.records());
}

/// A curve of nobody: what is computed falls from all to a tenth.
fn curve(method: &str) -> Curve {
    let about = About { method: method.to_string(), options: Default::default(), family: "wan".to_string() };
    let sigmas: Vec<f64> = common::run(50).steps.iter().map(|step| step.sigma.0).collect();
    let rows: Vec<_> = (0..8).map(|i| (10f64.powi(i - 4), vec![vec![0.1 + 0.9 / f64::from(i + 1); 50]])).collect();
    Curve::mean(about, &sigmas, &rows).unwrap()
}

fn steered<'a>(config: &'a CacheConfig, budgets: &[(usize, f64)]) -> Steered<'a> {
    let name = config.method().name();
    Steered::new(config.method(), &CacheSpec::new(name, Default::default()), curve(name), budgets.to_vec()).unwrap()
}

/// What a run computed, in equivalents of whole steps.
fn computed(played: &Played) -> f64 {
    played.computed_part() * played.steps.len() as f64
}

/// Methods that can be steered, as they can be played here.
fn steerable() -> Vec<CacheConfig> {
    let is_one = |config: &CacheConfig| CacheConfig::STEERABLE.contains(&config.method().name());
    let of_one_branch = |config: &CacheConfig| config.method().options()["reuse"] == "from_cond";
    methods(0.1).into_iter().filter(|config| is_one(config) && !of_one_branch(config)).collect()
}

#[test]
fn those_that_can_be_steered_are_those_with_a_dial() {
    let run = common::run(50);
    for config in methods(0.1) {
        let (name, dial) = (config.method().name(), config.method().policy(&run).dial(0.0));
        assert_eq!(dial, CacheConfig::STEERABLE.contains(&name), "{name}");
        let refused = steered(&config, &[(0, 30.0)]).try_start(&run).map(drop);
        assert!(dial || refused.as_ref().unwrap_err().contains("stride, trend, navicache"), "{name}: {refused:?}");
    }
}

#[test]
fn a_target_is_met_whatever_is_measured() {
    for (steps, budget) in [(50, 33.3), (50, 25.0), (50, 17.0), (30, 15.0), (30, 12.0), (100, 40.0)] {
        let run = common::run(steps);
        for config in steerable() {
            let method = steered(&config, &[(0, budget)]);
            if method.check_budget(&run, budget).is_err() {
                continue; // block methods compute a part of every step
            }
            for scale in [0.1, 1.0, 10.0] {
                let wobble = |step: usize| scale * (1.0 + 0.5 * (step as f64).sin());
                let played = play_method(&run, &method, &mut |step, _, q| exists(step, q).then(|| wobble(step)));
                let found = computed(&played);
                assert!((found - budget).abs() <= 0.75, "{config:?}, {budget} of {steps}: {found} {}", played.strip());
                let guard = method.guard(steps);
                assert!((0..guard.first_steps).all(|step| played.is_full(step)), "{}", played.strip());
                assert!((0..guard.last_steps).all(|step| played.is_full(steps - 1 - step)), "{}", played.strip());
            }
        }
    }
}

#[test]
fn a_target_that_is_told_late_is_the_same_target() {
    for config in steerable() {
        let run = common::run(50);
        let play = |budgets: &[(usize, f64)]| {
            let method = steered(&config, budgets);
            play_method(&run, &method, &mut |step, _, q| exists(step, q).then_some(0.3 + 0.1 * (step as f64).cos()))
        };
        let told = play(&[(0, 30.0)]);
        assert_eq!(play(&[(3, 30.0)]).strip(), told.strip(), "{config:?}");
        assert_eq!(play(&[(0, 30.0)]), told, "{config:?}");
        assert!(all_full(&play(&[])), "until it is told, everything is computed: {config:?}");
        assert!(all_full(&play(&[(0, 50.0)])), "{config:?}");
        let changed = play(&[(0, 30.0), (25, 29.0)]);
        assert!((computed(&changed) - 29.0).abs() <= 0.75, "{config:?}: {}", changed.strip());
    }
}

#[test]
fn a_broken_measurement_costs_a_step_of_the_target_and_no_more() {
    for config in steerable() {
        let method = steered(&config, &[(0, 30.0)]);
        let broken = |step: usize| if step == 20 { f64::NAN } else { 0.5 };
        let played = play_method(&common::run(50), &method, &mut |step, _, q| exists(step, q).then(|| broken(step)));
        assert!((computed(&played) - 30.0).abs() <= 1.5, "{config:?}: {}", played.strip());
    }
}

#[test]
fn targets_that_cannot_be_met_are_refused_with_the_reason() {
    let run = common::run(50);
    for (text, budget, says) in [
        ("stride,threshold=1,warmup_steps=6", 4.0, "4 at the ends are always computed: at most 10.0 times as fast"),
        ("stride,threshold=1", 60.0, "expected at most all of them"),
        ("fbcache,threshold=1", 8.0, "of each of the others"),
    ] {
        let config = method(text);
        let refused = steered(&config, &[(0, budget)]).try_start(&run).map(drop).unwrap_err();
        assert!(refused.contains(says), "{text}: {refused}");
    }
    let config = method("stride");
    let refused = steered(&config, &[(0, 6.0)]).try_start(&common::run(8)).map(drop).unwrap_err();
    assert!(refused.contains("8 steps leave nothing to choose"), "{refused}");
    let given: CacheSpec = "stride,threshold=0.01".parse().unwrap();
    let refused = Steered::new(config.method(), &given, curve("stride"), vec![]).map(drop).unwrap_err();
    assert!(refused.contains("one of the two"), "{refused}");
    let given: CacheSpec = "stride,max_run=2".parse().unwrap();
    let given_config = method("stride,max_run=2");
    let steered = Steered::new(given_config.method(), &given, curve("stride"), vec![(0, 10.0)]).unwrap();
    let refused = steered.try_start(&run).map(drop).unwrap_err();
    assert!(refused.contains("max_run=2"), "{refused}");
}

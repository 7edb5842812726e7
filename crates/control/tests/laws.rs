//! Laws that every method keeps, whatever it measures.

use navicache_control::cache::{Asks, At, CacheConfig, CacheSpec, Decision, Guarded, Policy, Quantity, Run, Seen};
use navicache_control::guidance::Branch;
use proptest::prelude::*;

/// Plays a run against measured values and returns, step by step, whether it was computed.
fn play(config: &CacheConfig, steps: usize, mut measure: impl FnMut(usize, Quantity) -> Option<f64>) -> Vec<bool> {
    let run = Run { steps, branches: vec![Branch::Cond, Branch::Uncond] };
    let mut policy: Guarded = config.method().start(&run);
    let Asks { to_decide, to_learn, .. } = policy.asks();
    let mut computed = Vec::new();
    for step in 0..steps {
        let mut see = |quantities: &[Quantity]| -> Seen {
            quantities.iter().filter_map(|&q| Some((q, measure(step, q)?))).collect()
        };
        let seen = see(&to_decide);
        let compute = policy.decide(At { step }, &seen) == Decision::Compute;
        if compute {
            policy.computed(At { step }, &see(&to_learn));
        }
        computed.push(compute);
    }
    computed
}

fn method(text: &str) -> CacheConfig {
    text.parse::<CacheSpec>().unwrap().resolve("wan").unwrap()
}

/// Every method at a threshold, with as much freedom as its guard allows.
fn methods(threshold: f64) -> Vec<CacheConfig> {
    vec![
        method("none"),
        method(&format!("easycache,threshold={threshold},warmup_steps=0")),
        method(&format!("navicache,threshold={threshold},align_steps=0")),
        method(&format!("easycache,threshold={threshold}")),
        method(&format!("navicache,threshold={threshold}")),
        method(&format!(
            "navicache,threshold={threshold},align_steps=2,projection=every_step,noise_floor=0.1,uncertainty=1"
        )),
        method(&format!("navicache,threshold={threshold},align_steps=2,projection=every_step,drift=0.7")),
    ]
}

/// A reference point exists only from the second visit on.
fn with_reference(step: usize, quantity: Quantity, value: f64) -> Option<f64> {
    (step > 0 || quantity == Quantity::OutputMagnitude).then_some(value)
}

proptest! {
    #[test]
    fn threshold_zero_never_reuses(values in prop::collection::vec(0.0f64..2.0, 64), steps in 1usize..60) {
        for config in methods(0.0) {
            let computed = play(&config, steps, |i, q| with_reference(i, q, values[(i * 4 + q as usize) % 64]));
            prop_assert!(computed.iter().all(|&c| c), "{config:?}: {computed:?}");
        }
    }

    #[test]
    fn first_and_last_steps_are_computed(values in prop::collection::vec(0.0f64..2.0, 64), steps in 1usize..60) {
        for config in methods(1e9) {
            let computed = play(&config, steps, |i, q| with_reference(i, q, values[(i * 4 + q as usize) % 64]));
            let guard = config.method().guard();
            prop_assert!(computed[0]);
            prop_assert!(computed.iter().take(guard.first_steps).all(|&c| c));
            prop_assert!(computed.iter().rev().take(guard.last_steps).all(|&c| c));
        }
    }

    #[test]
    fn same_inputs_same_decisions(values in prop::collection::vec(0.0f64..2.0, 64), threshold in 0.0f64..1.0) {
        for config in methods(threshold) {
            let play = || play(&config, 50, |i, q| with_reference(i, q, values[(i * 4 + q as usize) % 64]));
            prop_assert_eq!(play(), play());
        }
    }

    #[test]
    fn the_longest_run_is_kept(max_run in 1usize..5) {
        for name in ["easycache", "navicache"] {
            let config = method(&format!("{name},threshold=1e9,max_run={max_run}"));
            let computed = play(&config, 50, |i, q| with_reference(i, q, 1.0));
            let longest = computed.split(|&c| c).map(<[bool]>::len).max().unwrap_or(0);
            prop_assert_eq!(longest, max_run);
        }
    }
}

#[test]
fn broken_measurements_lead_to_compute() {
    for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for config in methods(1e9) {
            let computed = play(&config, 30, |i, q| with_reference(i, q, broken));
            assert!(computed.iter().all(|&c| c), "{config:?} with {broken}: {computed:?}");
        }
    }
    // A zero output leaves no scale to compare a change with.
    for config in methods(1e9) {
        let computed =
            play(&config, 30, |i, q| with_reference(i, q, if q == Quantity::OutputMagnitude { 0.0 } else { 1.0 }));
        assert!(computed.iter().all(|&c| c), "{config:?}: {computed:?}");
    }
}

#[test]
fn any_number_of_steps_works() {
    for steps in [1, 2, 3, 1000] {
        for config in methods(0.05) {
            assert_eq!(play(&config, steps, |i, q| with_reference(i, q, 0.1)).len(), steps);
        }
    }
}

#[test]
fn nothing_is_reused_before_it_was_computed() {
    for config in methods(1e9) {
        // even when a measurement claims a reference point that cannot exist
        assert!(play(&config, 5, |_, _| Some(0.0))[0], "{config:?}");
    }
}

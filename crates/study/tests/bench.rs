//! The solver's benchmarks say what they timed, on as few tokens as there can be.

use navicache_engine::{DeviceChoice, DtypeChoice};
use navicache_study::bench::{self, Options, Part};

#[test]
fn a_skipped_step_and_a_correction_are_timed_without_a_model() {
    for part in [Part::Skip, Part::Correction] {
        let options = Options { tokens: 24, dtype: DtypeChoice::Auto, runs: 2, device: DeviceChoice::Cpu };
        let timing = bench::run(part, &options).unwrap();
        assert_eq!((timing.tokens, timing.runs.len()), (Some(24), 2), "{}", timing.what);
        assert_eq!(timing.grid.map(|places| places.iter().product()), Some(24));
        assert!(timing.median_seconds > 0.0);
    }
}

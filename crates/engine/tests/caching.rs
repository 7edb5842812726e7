//! Every cache method on a real model: the embedded one, at a small size.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use candle_core::Tensor;
use navicache_engine::control::cache::CacheConfig;
use navicache_engine::control::strip::Ran;
use navicache_engine::replay::player::replay;
use navicache_engine::replay::samples::SAMPLES;
use navicache_engine::replay::trace::{Recorder, Trace};
use navicache_engine::{Error, LoadOptions, Pipeline, Request, Video, cache_argument, generate, save_preset, trace};

const STEPS: usize = 14;
/// Of a forward: eight blocks of three.
const UNITS: usize = 24;

fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| Pipeline::open("demo", &LoadOptions::default()).unwrap())
}

fn request(cache: &str) -> Request {
    Request {
        size: Some((32, 32).into()),
        frames: Some(5),
        steps: Some(STEPS),
        seed: Some(3),
        cache: Some(cache_argument(cache).unwrap_or_else(|e| panic!("{cache}: {e}"))),
        ..Request::new("a red circle bouncing on a navy background")
    }
}

fn make(cache: &str) -> Video {
    generate(pipeline(), &request(cache), &mut |_| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{cache}: {e}"))
}

fn numbers(latents: &Tensor) -> Vec<f32> {
    latents.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_method_counts_what_ran() {
    let plain = make("none");
    for cache in SAMPLES.iter().flat_map(|sample| sample.eager) {
        let Video { report, latents, .. } = make(cache);
        let units = report.totals.units_computed + report.totals.units_reused;
        assert_eq!(units, STEPS * 2 * UNITS, "{cache}");
        assert!(report.totals.units_reused > 0, "{cache} {}", report.strip);
        for step in &report.steps {
            for (branch, b) in &step.branches {
                let expected = match (b.units_computed, b.units_reused) {
                    (_, 0) => Ran::Computed,
                    (0, _) => Ran::Reused,
                    _ => Ran::Mixed,
                };
                assert_eq!(b.decision, expected, "{cache} step {} {branch}", step.index);
                assert_eq!(b.units_computed + b.units_reused, UNITS);
            }
        }
        // A video of the same kind, not noise: nearer to the uncached one than the uncached one is to nothing.
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let error = norm(&(&latents - &plain.latents).unwrap()) / norm(&plain.latents);
        assert!(error > 0.0 && error < 0.9, "{cache}: {error}");
    }
}

#[test]
fn computing_everything_in_spans_is_the_plain_forward_bit_for_bit() {
    let plain = make("none");
    for cache in SAMPLES.iter().flat_map(|sample| sample.off) {
        let video = make(cache);
        assert_eq!(video.report.totals.units_reused, 0, "{cache}");
        assert_eq!(numbers(&video.latents), numbers(&plain.latents), "{cache}");
    }
}

#[test]
fn nothing_outlives_a_generation() {
    for cache in
        ["dicache,threshold=0.15", "mixcache,threshold=5", "tafc,threshold=0.5,warmup_steps=3", "trend,threshold=0.02"]
    {
        let (first, other, again) = (make(cache), make("pab"), make(cache));
        assert_eq!(first.report.strip, again.report.strip, "{cache}");
        assert_eq!(numbers(&first.latents), numbers(&again.latents), "{cache}");
        assert_ne!(numbers(&first.latents), numbers(&other.latents), "{cache}");
    }
}

#[test]
fn a_schedule_repeats_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let cached = make("navicache,threshold=0.3,align_steps=3");
    cached.report.save(&path).unwrap();
    let argument = format!("schedule:{}", path.display());
    let forced = make(&argument);
    assert_eq!(forced.report.strip, cached.report.strip);
    assert_eq!(numbers(&forced.latents), numbers(&cached.latents));

    let refused = |change: &dyn Fn(&mut Request), part: &str| {
        let mut request = request(&argument);
        change(&mut request);
        let error =
            generate(pipeline(), &request, &mut |_| ControlFlow::Continue(())).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&|r| r.steps = Some(20), "the schedule has 14 steps, the run 20");
    refused(&|r| r.guidance = Some(1.0), "step 0 of the schedule has 2 branches, the run 1");
}

#[test]
fn a_preset_for_another_model_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let config = cache_argument("easycache,threshold=0.3,warmup_steps=3").unwrap().resolve("demo").unwrap();
    for (family, warns) in [("demo", false), ("wan-t2v-14b", true)] {
        let path = folder.path().join(format!("{family}.json"));
        save_preset(&config, family, serde_json::Value::Null, &path).unwrap();
        let report = make(&format!("@{}", path.display())).report;
        let warned = report.warnings.iter().any(|w| w.contains("was tuned for wan-t2v-14b, this model is demo"));
        assert_eq!(warned, warns, "{:?}", report.warnings);
        assert!(report.totals.units_reused > 0);
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let refused = |cache: &str, guidance: f64, part: &str| {
        let request = Request { guidance: Some(guidance), ..request(cache) };
        let error =
            generate(pipeline(), &request, &mut |_| ControlFlow::Continue(())).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{cache}: {error}");
    };
    refused("easycache,reuse=from_cond", 1.0, "this run has one branch");
    refused("mixcache,granularity=cfg", 1.0, "this run has one branch");
    refused("dbcache,first_blocks=8", 4.0, "first_blocks and last_blocks are 9 of 8 blocks");
    refused("dicache,probe_blocks=8", 4.0, "probe_blocks is 8 of 8 blocks");
    refused("mixcache,granularity=block,first_blocks=0.5,last_blocks=0.45", 4.0, "leave none of 8 blocks");
}

#[test]
fn a_bill_over_the_budget_names_both_numbers() {
    let request = Request { cache_memory: Some(100_000), ..request("taylorseer,level=units") };
    match generate(pipeline(), &request, &mut |_| ControlFlow::Continue(())) {
        Err(error @ Error::Invalid { .. }) => {
            // 24 units, 2 values, 2 branches of 2 x 2 x 2 tokens, 192 wide, f32
            let needed = 24 * 2 * 2 * (2 * 2 * 2) * 192 * 4;
            let message = error.to_string();
            assert!(message.contains(&format!("{:.1} kB in all", needed as f64 / 1e3)), "{message}");
            assert!(message.contains("the budget is 100.0 kB (`cache_memory`)"), "{message}");
        }
        other => panic!("{:?}", other.map(|video| video.report.totals)),
    }
}

#[test]
fn a_trace_replays_to_what_a_run_does() {
    let recorder = Recorder::default();
    let recorded = trace::record(pipeline(), &request("none"), &recorder, &mut |_| ControlFlow::Continue(())).unwrap();

    // through a file and back
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    trace::save(&recorded, &path).unwrap();
    let trace::Recorded::Trace(read) = trace::read(&path).unwrap() else { panic!("not a trace") };
    assert_eq!(*read, recorded);

    // What a method computes follows from the trace exactly as long as it has reused nothing: up to the first reuse the
    // inputs are those of the uncached run.
    for cache in SAMPLES.iter().flat_map(|sample| sample.eager) {
        let config = cache_argument(cache).unwrap().resolve("demo").unwrap();
        let (replayed, ran) = (replayed(&recorded, &config), make(cache).report.strip);
        let first = |strip: &str| strip.split('|').position(|step| step.contains(['.', 'm']));
        // BlockCache and MixCache choose among blocks of which the trace knows the first and the middle one.
        if !cache.contains("block") && !cache.starts_with("mixcache") {
            assert_eq!(first(&replayed), first(&ran), "{cache}: {replayed} and {ran}");
        }
    }
}

fn replayed(trace: &Trace, config: &CacheConfig) -> String {
    replay(trace, config.method()).unwrap().played.strip().to_string()
}

//! What cache methods promise, on the other families of models: tiny random pipelines of HunyuanVideo, Open-Sora
//! 1.2 and CogVideoX.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use navicache_engine::control::cache::{CacheConfig, presets};
use navicache_engine::control::strip::Ran;
use navicache_engine::replay::player::replay;
use navicache_engine::replay::samples::SAMPLES;
use navicache_engine::replay::trace::Recorder;
use navicache_engine::{
    Error, Event, Files, LoadOptions, Pipeline, Request, Tiling, Video, cache_argument, generate, trace,
};
use tempfile::TempDir;

const STEPS: usize = 14;

struct Model {
    pipeline: Pipeline,
    family: &'static str,
    /// Of one forward.
    units: usize,
    branches: usize,
    size: (usize, usize),
    frames: usize,
    _folder: TempDir,
}

fn open(folder: &Path) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

/// Two double blocks of two units and two single blocks; conditioned on the guidance.
static HUNYUAN: LazyLock<Model> = LazyLock::new(|| {
    let folder = tiny::pipeline_of(&golden("hunyuan"));
    let pipeline = open(folder.path());
    Model { pipeline, family: "hunyuanvideo", units: 6, branches: 1, size: (48, 32), frames: 9, _folder: folder }
});

/// Two pairs of blocks of six units; two branches.
static OPENSORA: LazyLock<Model> = LazyLock::new(|| {
    let folder = tiny::opensora();
    let pipeline = open(folder.path());
    Model { pipeline, family: "opensora", units: 12, branches: 2, size: (44, 36), frames: 17, _folder: folder }
});

/// Two blocks of two units; two branches; no flow.
static COGVIDEOX: LazyLock<Model> = LazyLock::new(|| {
    let folder = tiny::cogvideox("2b", "ddim");
    let pipeline = open(folder.path());
    Model { pipeline, family: "cogvideox-2b", units: 4, branches: 2, size: (48, 32), frames: 9, _folder: folder }
});

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn models() -> [&'static Model; 3] {
    [&HUNYUAN, &OPENSORA, &COGVIDEOX]
}

impl Model {
    fn request(&self, cache: &str) -> Request {
        // Presets are for models of many blocks.
        let cache = match cache.strip_prefix("dbcache") {
            Some(rest) if !rest.contains("first_blocks") => format!("dbcache{rest},first_blocks=1,last_blocks=0"),
            _ => cache.to_string(),
        };
        // There is no table of MagCache's for CogVideoX.
        let cache = match cache.strip_prefix("magcache") {
            Some(rest) if self.family.starts_with("cogvideox") => {
                let warmup = if rest.contains("warmup=") { "" } else { ",warmup=0.2" };
                format!("magcache{rest},ratios=opensora-1.2{warmup}")
            }
            _ => cache,
        };
        let cache = &cache.replace("granularity=block", "granularity=block,first_blocks=0.5,last_blocks=0");
        Request {
            size: Some(self.size.into()),
            frames: Some(self.frames),
            steps: Some(STEPS),
            cache: Some(cache_argument(cache).unwrap_or_else(|e| panic!("{cache}: {e}"))),
            tile: Tiling::Off,
            // The template alone is longer than what a prompt has room for in the published model: the tiny tokenizer
            // knows letters only.
            max_sequence_length: (self.family == "hunyuanvideo").then_some(600),
            ..Request::new("a red circle")
        }
    }

    fn make(&self, cache: &str) -> Video {
        let made = generate(&self.pipeline, &self.request(cache), &mut |_| ControlFlow::Continue(()));
        made.unwrap_or_else(|e| panic!("{}, {cache}: {e}", self.family))
    }

    /// Why a method does not go with the model, if it does not: it is known after a step.
    fn refuses(&self, cache: &str) -> Option<String> {
        let made = generate(&self.pipeline, &self.request(cache), &mut |event| match event {
            Event::Step { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        match made.map(|video| video.report.strip).unwrap_err() {
            Error::Cancelled { step: 1, .. } => None,
            error => Some(error.to_string()),
        }
    }
}

fn numbers(video: &Video) -> Vec<f32> {
    video.latents.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_method_counts_what_ran() {
    for model in models() {
        let (mut reused, mut tried) = (0, 0);
        for cache in SAMPLES.iter().flat_map(|sample| sample.eager) {
            let needs_guidance = cache.contains("from_cond") || cache.contains("granularity=cfg");
            if cache.ends_with(":published") {
                continue; // a preset of the embedded model
            }
            if cache.contains("reuse=step_over") {
                // These families sample with Euler, or with what it is elsewhere.
                let made = generate(&model.pipeline, &model.request(cache), &mut |_| ControlFlow::Continue(()));
                let reason = made.map(|video| video.report.strip).unwrap_err().to_string();
                let solver = if model.family.starts_with("cogvideox") { "ddim" } else { "euler" };
                assert!(reason.contains(&format!("the solver {solver}")), "{}, {cache}: {reason}", model.family);
                continue;
            }
            if model.branches == 1 && needs_guidance {
                assert!(model.refuses(cache).is_none_or(|e| e.contains("branch")), "{cache}");
                continue;
            }
            tried += 1;
            let report = model.make(cache).report;
            let all = STEPS * model.branches * model.units;
            assert_eq!(report.totals.units_computed + report.totals.units_reused, all, "{cache}");
            reused += (report.totals.units_reused > 0) as usize;
            assert_eq!(report.steps.len(), STEPS);
            assert_eq!(report.strip.split_terminator('|').count(), STEPS, "{cache}: {}", report.strip);
            for step in &report.steps {
                assert_eq!(step.branches.len(), model.branches);
                for b in step.branches.values() {
                    let expected = match (b.units_computed, b.units_reused) {
                        (_, 0) => Ran::Computed,
                        (0, _) => Ran::Reused,
                        _ => Ran::Mixed,
                    };
                    assert_eq!(b.decision, expected, "{cache} step {}", step.index);
                }
            }
        }
        // Thresholds are those of another model; most still find something to reuse on this one.
        assert!(2 * reused > tried, "{}: {reused} of {tried} reuse", model.family);
    }
}

#[test]
fn a_threshold_of_zero_is_the_plain_run_bit_for_bit() {
    for model in models() {
        let plain = numbers(&model.make("none"));
        for cache in SAMPLES.iter().flat_map(|sample| sample.off).filter(|cache| !cache.contains("reuse=step_over")) {
            let video = model.make(cache);
            assert_eq!(video.report.totals.units_reused, 0, "{cache}");
            assert_eq!(numbers(&video), plain, "{}, {cache}", model.family);
        }
    }
}

#[test]
fn nothing_outlives_a_generation() {
    for model in models() {
        let cache = "navicache,threshold=5,align_steps=3";
        let (first, other, again) = (model.make(cache), model.make("pab"), model.make(cache));
        assert!(first.report.totals.steps_reused > 0);
        assert_eq!(first.report.strip, again.report.strip);
        assert_eq!(numbers(&first), numbers(&again));
        assert_ne!(numbers(&first), numbers(&other));
    }
}

#[test]
fn every_preset_runs() {
    for model in models() {
        for about in CacheConfig::METHODS {
            for preset in presets::names(about.name, model.family) {
                let cache = format!("{}:{preset}", about.name);
                let refused = model.refuses(&cache);
                let needs_guidance = refused.as_ref().is_some_and(|e| e.contains("branch"));
                assert!(refused.is_none() || (model.branches == 1 && needs_guidance), "{cache}: {refused:?}");
            }
        }
    }
}

#[test]
fn open_sora_broadcasts_each_kind_of_attention_in_its_own_range() {
    // VideoSys's windows and ranges. Thirty steps at 36 x 44: the timesteps decide.
    let cache = "pab,self_range=2,temporal_range=4,cross_range=6,above=450,below=930,mlp_starts=[],mlp_blocks=0";
    let report = OPENSORA.make(cache).report;
    for step in &report.steps {
        let inside = 450.0 < step.timestep && step.timestep < 930.0;
        let reused = |range: usize| inside && step.index % range != 0;
        // Two pairs of blocks, each with an attention within frames, one across them, and two to the text.
        let expected = 2 * (reused(2) as usize + reused(4) as usize + 2 * reused(6) as usize);
        for branch in step.branches.values() {
            assert_eq!(branch.units_reused, expected, "step {} at {}", step.index, step.timestep);
        }
    }
    assert!(report.totals.units_reused > 0);
}

#[test]
fn open_sora_is_observed_on_the_tokens_of_both_branches() {
    // A residual that is reused is that of the tokens: the head runs at its own timestep, so that the prediction of a
    // reused step is not the last one's.
    let cache = "navicache,threshold=100,align_steps=3";
    let report = OPENSORA.make(cache).report;
    assert_eq!(report.strip, format!("{}{}SS|", "SS|".repeat(3), "..|".repeat(STEPS - 4)));
    let seen = &report.steps[1].branches["cond"].seen;
    assert!(seen.contains_key("input_change_since_compute"), "{seen:?}");
}

#[test]
fn traces_know_blocks_of_several_kinds() {
    for model in models() {
        let recorder = Recorder::default();
        let request = model.request("none");
        let recorded = trace::record(&model.pipeline, &request, &recorder, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(recorded.run().units.len(), model.units);
        let config = cache_argument("navicache,threshold=5,align_steps=3").unwrap().resolve(model.family).unwrap();
        let played = replay(&recorded, config.method()).unwrap().played.strip().to_string();
        let ran = model.make("navicache,threshold=5,align_steps=3").report.strip;
        let first = |strip: &str| strip.split('|').position(|step| step.contains('.'));
        assert_eq!(first(&played), first(&ran), "{played} and {ran}");
    }
}

#[test]
fn families_do_not_mix() {
    let hunyuan = HUNYUAN._folder.path();
    let opensora = OPENSORA._folder.path();
    let refused = |model: &Path, files: Files, parts: &[&str]| {
        let options = LoadOptions { files, ..LoadOptions::default() };
        let message = Pipeline::open(model.to_str().unwrap(), &options).err().unwrap().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let vae = Some(hunyuan.join("vae/diffusion_pytorch_model.safetensors"));
    refused(
        opensora,
        Files { vae: vae.clone(), ..Files::default() },
        &["`vae`: expected an Open-Sora VAE, found a HunyuanVideo VAE"],
    );
    let transformer = Some(opensora.join("OpenSora-STDiT-v3/model.safetensors"));
    refused(
        hunyuan,
        Files { transformer: transformer.clone(), ..Files::default() },
        &["`transformer`: expected a HunyuanVideo transformer, found an Open-Sora transformer"],
    );
    refused(
        Path::new(""),
        Files { transformer, vae, ..Files::default() },
        &["`vae`: expected an Open-Sora VAE, found a HunyuanVideo VAE"],
    );
}

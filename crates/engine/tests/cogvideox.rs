//! CogVideoX, its parts and the whole, against the reference implementation (diffusers and transformers, f32, CPU), on
//! the same random weights.

mod tiny;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use navicache_engine::models::cogvideox::{Transformer, TransformerConfig, Vae, VaeConfig, VaeEncoder};
use navicache_engine::models::text::t5::{self, T5};
use navicache_engine::models::{Autoencoder, Chunk, Denoiser, Room, Weights};
use navicache_engine::noise;
use navicache_engine::replay::samples::SAMPLES;
use navicache_engine::weights::Tensors;
use navicache_engine::{LoadOptions, Pipeline, Request, Tiling, Video, cache_argument, generate};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

const MODELS: [&str; 5] = ["2b", "5b", "5b_i2v", "15", "15_i2v"];

/// All weights, with all five transformers.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tiny::pipeline_of(&golden()));
static EXPECTED: LazyLock<HashMap<String, Tensor>> =
    LazyLock::new(|| candle_core::safetensors::load(golden().join("expected.safetensors"), &Device::Cpu).unwrap());

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cogvideox")
}

fn error(found: &Tensor, name: &str) -> f64 {
    let expected = &EXPECTED[name];
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    norm(&(found - expected).unwrap()) / norm(expected)
}

fn is_close(found: &Tensor, name: &str) {
    let error = error(found, name);
    println!("{name}: {error:.1e}");
    assert!(error < 1e-5, "{name}: {error:.1e}");
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn component<C: DeserializeOwned>(name: &str) -> (C, Tensors) {
    let folder = FOLDER.path().join(name);
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let stem = if name.contains("_encoder") { "model" } else { "diffusion_pytorch_model" };
    (config, Tensors::open(&folder, stem).unwrap())
}

#[test]
fn text_encoder_sees_the_padding() {
    let (config, files): (t5::Config, _) = component("text_encoder");
    let encoder = T5::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let ids: Vec<u32> = EXPECTED["text.ids"].to_vec1::<i64>().unwrap().iter().map(|&id| id as u32).collect();
    assert_eq!((ids.len(), ids[19]), (20, 0));
    is_close(&encoder.forward(&ids).unwrap(), "text.hidden");
}

fn transformer(model: &str) -> Transformer {
    let (config, files): (TransformerConfig, _) = component(&format!("transformer_{model}"));
    Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap()
}

/// Latents, encoded text and picture of the script.
fn inputs(model: &str) -> (Tensor, Tensor, Option<Tensor>) {
    let frames = if model.starts_with("15") { 4 } else { 3 };
    let picture = model.ends_with("i2v").then(|| randn(6, &[1, 4, frames, 4, 6]));
    (randn(1, &[1, 4, frames, 4, 6]), randn(2, &[1, 20, 24]), picture)
}

#[test]
fn transformers_at_three_timesteps() {
    for model in MODELS {
        let transformer = transformer(model);
        let (latents, text, picture) = inputs(model);
        let cond = transformer.cond(&text, picture.as_ref()).unwrap();
        for timestep in [999, 421, 3] {
            let v = transformer.forward(&latents, timestep as f64, &cond).unwrap();
            is_close(&v, &format!("transformer_{model}.{timestep}"));
        }
    }
}

#[test]
fn a_forward_is_its_units() {
    let transformer = transformer("5b_i2v");
    let (latents, text, picture) = inputs("5b_i2v");
    let cond = transformer.cond(&text, picture.as_ref()).unwrap();
    let mut state = transformer.begin(&latents, 500.0, &cond).unwrap();
    assert_eq!(transformer.units().len(), 4);
    for unit in 0..transformer.units().len() {
        // Taking the features out and putting them back, into a state of its own, changes nothing.
        let features = transformer.features(&state);
        state = transformer.begin(&latents, 500.0, &cond).unwrap();
        transformer.set_features(&mut state, features);
        transformer.run_unit(unit, &mut state).unwrap();
    }
    let numbers = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let whole = transformer.forward(&latents, 500.0, &cond).unwrap();
    assert_eq!(numbers(transformer.finish(state).unwrap()), numbers(whole));
}

#[test]
fn what_a_transformer_cannot_take_is_refused() {
    let says = |made: navicache_engine::models::Result<navicache_engine::models::cogvideox::Cond>, part: &str| {
        let message = made.err().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    };
    let (_, text, picture) = inputs("5b_i2v");
    says(transformer("2b").cond(&text, picture.as_ref()), "expected no picture, found a picture");
    says(transformer("5b_i2v").cond(&text, None), "expected a picture");
    says(transformer("2b").cond(&text.narrow(1, 0, 9).unwrap(), None), "20 tokens of width 24");
    assert!(transformer("5b").cond(&text.narrow(1, 0, 9).unwrap(), None).is_ok());
}

fn vae() -> Vae {
    let (config, files): (VaeConfig, _) = component("vae");
    Vae::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap()
}

#[test]
fn vae_decoder_in_chunks() {
    let vae = vae();
    let latents = randn(5, &[1, 4, 5, 2, 3]);
    for frames in [1, 2, 3, 5] {
        let mut decoding = vae.decoder(&latents.narrow(2, 0, frames).unwrap()).unwrap();
        let chunks: Vec<Tensor> = std::iter::from_fn(|| decoding.next_chunk().unwrap()).collect();
        assert_eq!(chunks.len(), (frames / 2).max(1));
        let decoded = Tensor::cat(&chunks, 0).unwrap().transpose(0, 1).unwrap().unsqueeze(0).unwrap();
        is_close(&decoded, &format!("vae.frames.{frames}"));
    }
}

#[test]
fn vae_decoder_in_tiles_covers_every_frame() {
    let (config, files): (VaeConfig, _) = component("vae");
    let vae = Vae::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let latents = randn(5, &[1, 4, 3, 4, 20]);
    let plan = vae.plan(&[1, 4, 3, 4, 20], Room::Pixels(128));
    assert_eq!(plan.tile, [128, 32]);
    let mut decoding = Autoencoder::decoder(&vae, &latents, 9, &plan).unwrap();
    let (mut frames, mut tiles) = (0, 0);
    while let Some(chunk) = decoding.next_chunk().unwrap() {
        match chunk {
            Chunk::Tile { pixels, first, .. } => {
                assert_eq!(first, frames);
                frames += pixels.dim(0).unwrap();
            }
            Chunk::TileDone { index, tiles: all } => {
                assert_eq!((index, all, frames), (tiles, 2, 9));
                (frames, tiles) = (0, tiles + 1);
            }
            Chunk::Frames(_) => panic!("whole frames"),
        }
    }
    assert_eq!(tiles, 2);
}

#[test]
fn vae_encoder_of_a_picture() {
    let (config, files): (VaeConfig, _) = component("vae");
    let encoder = VaeEncoder::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let picture = randn(3, &[1, 3, 16, 32]).clamp(-1.0, 1.0).unwrap();
    let (mean, deviation) = encoder.encode(&picture).unwrap();
    is_close(&mean, "vae.mean");
    is_close(&deviation, "vae.std");
}

/// The prompt of the script.
fn request(model: &str, steps: usize) -> Request {
    Request {
        negative_prompt: Some("a blue star spinning on a cream background".to_string()),
        size: Some((48, 32).into()),
        frames: Some(9),
        steps: Some(steps),
        seed: Some(7),
        cache: Some("none".parse().unwrap()),
        tile: Tiling::Off,
        image: model.ends_with("i2v").then(|| golden().join("picture.png")),
        ..Request::new("a red circle bouncing on a navy background")
    }
}

fn open(folder: &TempDir) -> Pipeline {
    Pipeline::open(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn make(pipeline: &Pipeline, request: &Request) -> Video {
    generate(pipeline, request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A whole run against the reference's.
fn runs(model: &str, run: &str, solver: &str, steps: usize, dynamic_guidance: bool) -> Video {
    let folder = tiny::cogvideox(model, solver);
    let video = make(&open(&folder), &Request { dynamic_guidance, ..request(model, steps) });
    let name = format!("pipeline.{model}.{run}");
    let error = error(&video.latents, &name);
    println!("{name}: {error:.1e}");
    assert!(error < 1e-4, "{name}: {error:.1e}");
    video
}

/// The same with its frames.
fn runs_to_frames(model: &str, solver: &str, dynamic_guidance: bool) {
    let video = runs(model, "50", solver, 50, dynamic_guidance);
    let expected = &EXPECTED[&format!("pipeline.{model}.frames")];
    assert_eq!(expected.dims(), [9, 32, 48, 3]);
    let expected = expected.to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let worst = video.frames.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(video.frames.len(), expected.len());
    assert!(worst <= Some(2), "{model}: frames are off by {worst:?}");
}

#[test]
fn the_2b_model_with_ddim() {
    runs_to_frames("2b", "ddim", false);
    // Numbers of steps that do not divide the timesteps; of 7, the last step ends with noise left.
    runs("2b", "30", "ddim", 30, false);
    runs("2b", "7", "ddim", 7, false);
}

#[test]
fn the_5b_model_with_noise_in_every_step() {
    runs_to_frames("5b", "dpm", true);
    runs("5b", "30", "dpm", 30, false);
    runs("5b", "7", "dpm", 7, false);
    runs("2b", "dpm30", "dpm", 30, false);
}

#[test]
fn the_5b_model_from_a_picture() {
    runs_to_frames("5b_i2v", "ddim", false);
    runs("5b_i2v", "dpm", "dpm", 8, false);
}

#[test]
fn the_second_version() {
    runs_to_frames("15", "ddim", true);
    runs_to_frames("15_i2v", "dpm", false);
}

#[test]
fn a_solver_may_be_asked_for() {
    let (ddim, dpm) = (tiny::cogvideox("2b", "ddim"), tiny::cogvideox("2b", "dpm"));
    let numbers = |folder: &TempDir, solver: Option<&str>| {
        let solver = solver.map(|name| name.parse().unwrap());
        let video = make(&open(folder), &Request { solver, ..request("2b", 12) });
        video.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(numbers(&ddim, Some("dpmpp_sde")), numbers(&dpm, None));
    assert_eq!(numbers(&dpm, Some("ddim")), numbers(&ddim, None));
    for other in ["unipc", "dpmpp", "euler"] {
        assert!(numbers(&ddim, Some(other)).iter().all(|x| x.is_finite()), "{other}");
    }
}

#[test]
fn latents_of_a_file_begin_the_same_run() {
    for solver in ["ddim", "dpm"] {
        let folder = tiny::cogvideox("15", solver);
        let pipeline = open(&folder);
        let path = folder.path().join("noise.safetensors");
        let shape = [1, 4, 4, 4, 6];
        let frames_first = Tensor::from_vec(noise::randn(7, 4 * 4 * 24), &[1, 4, 4, 4, 6][..], &Device::Cpu).unwrap();
        let noise = frames_first.transpose(1, 2).unwrap().contiguous().unwrap();
        assert_eq!(noise.dims(), shape);
        candle_core::safetensors::save(&HashMap::from([("latents", noise)]), &path).unwrap();
        let plain = make(&pipeline, &request("15", 5)).latents;
        let given = make(&pipeline, &Request { latents: Some(path), ..request("15", 5) }).latents;
        let same = (plain - given).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
        // The stochastic solver draws what the latents would have been, as in the reference.
        assert_eq!(same, solver == "ddim", "{solver}");
    }
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    let refused = |model: &str, change: &dyn Fn(&mut Request), part: &str| {
        let folder = tiny::cogvideox(model, "dpm");
        let mut request = request(model, 12);
        change(&mut request);
        let made = generate(&open(&folder), &request, &mut |_| ControlFlow::Continue(()));
        let message = made.err().unwrap_or_else(|| panic!("{model}: {part} is made")).to_string();
        assert!(message.contains(part), "{message}");
    };
    refused("2b", &|r| r.frames = Some(5), "expected 8n+1 frames; the nearest that work are 1 and 9");
    refused("2b", &|r| r.frames = Some(57), "the largest that works is 49");
    refused("2b", &|r| r.image = Some(golden().join("picture.png")), "from text alone");
    refused("5b_i2v", &|r| r.image = None, "`image` (none)");
    refused("5b_i2v", &|r| r.size = Some((64, 32).into()), "expected 48x32, the one size");
    refused("15", &|r| r.size = Some((2416, 32).into()), "the largest that works is 2400");
    refused("2b", &|r| r.max_sequence_length = Some(19), "`max_sequence_length` 19: expected 20");
    refused("5b", &|r| r.max_sequence_length = Some(21), "expected 20 at most");
    refused("2b", &|r| r.steps = Some(61), "number of steps is 61");
    refused("2b", &|r| r.true_guidance = Some(2.0), "take `guidance`");
    refused("5b", &|r| r.cache = Some("stride:mid,reuse=corrected".parse().unwrap()), "adds fresh noise");
    refused("5b", &|r| r.cache = Some("stride:mid,reuse=step_over".parse().unwrap()), "the solver dpmpp_sde");
}

/// With noise in every step methods run as with other solvers, but for what is left to the solver.
#[test]
fn methods_go_with_a_solver_that_adds_noise() {
    let folder = tiny::cogvideox("5b", "dpm");
    let pipeline = open(&folder);
    let run = |cache: &str| {
        let cache = cache.replace("granularity=block", "granularity=block,first_blocks=0.5,last_blocks=0");
        let cache = match cache.strip_prefix("dbcache") {
            Some(rest) if !rest.contains("first_blocks") => format!("dbcache{rest},first_blocks=1,last_blocks=0"),
            _ => cache,
        };
        // There is no table of MagCache's for this model.
        let cache = match cache.strip_prefix("magcache") {
            Some(rest) if !rest.contains("ratios") => {
                let warmup = if rest.contains("warmup=") { "" } else { ",warmup=0.2" };
                format!("magcache{rest},ratios=opensora-1.2{warmup}")
            }
            _ => cache,
        };
        let request = Request { cache: Some(cache_argument(&cache).unwrap()), ..request("5b", 12) };
        generate(&pipeline, &request, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())
    };
    let numbers = |video: &Video| video.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let plain = numbers(&run("none").unwrap());
    let by_solver = |message: &str| message.contains("dpmpp_sde") && message.contains("reuse=corrected");
    let (mut reused, mut refused) = (0, 0);
    for sample in SAMPLES.iter() {
        for cache in sample.off.iter().filter(|cache| !cache.ends_with(":published")) {
            match run(cache) {
                Ok(video) => assert_eq!(numbers(&video), plain, "{cache}"),
                Err(message) => assert!(by_solver(&message), "{cache}: {message}"),
            }
        }
        for cache in sample.eager.iter().filter(|cache| !cache.ends_with(":published")) {
            match run(cache) {
                Ok(video) => reused += usize::from(video.report.totals.units_reused > 0),
                Err(message) => {
                    assert!(by_solver(&message), "{cache}: {message}");
                    refused += 1;
                }
            }
        }
    }
    assert!(reused > 10 && refused > 0, "{reused} reuse, {refused} are refused");
}

#[test]
fn nothing_is_cached_unasked_where_noise_is_added() {
    let made = |solver: &str| {
        let folder = tiny::cogvideox("2b", solver);
        make(&open(&folder), &Request { cache: None, ..request("2b", 12) }).report.cache.to_string()
    };
    assert!(made("dpm").contains("none") && made("ddim").contains("stride"));
}

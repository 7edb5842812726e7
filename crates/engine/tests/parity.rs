//! Each component and the whole pipeline against the reference implementation (diffusers, f32, CPU), on the same random
//! weights.

mod tiny;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::strip::Ran;
use navicache_engine::models::image::clip::{self, ClipVision};
use navicache_engine::models::text::umt5::{self, Umt5};
use navicache_engine::models::wan::{ImageCond, Transformer, TransformerConfig, Vae, VaeConfig, VaeEncoder};
use navicache_engine::models::{Denoiser, Weights};
use navicache_engine::weights::Tensors;
use navicache_engine::{Event, LoadOptions, Pipeline, Request, Video, generate, noise};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

const PROMPT: &str = "a red circle bouncing on a navy background";
const NEGATIVE: &str = "a blue star spinning on a cream background";

fn expected(name: &str) -> Tensor {
    candle_core::safetensors::load(tiny::golden().join("expected.safetensors"), &Device::Cpu).unwrap()[name].clone()
}

fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    norm(&(found - expected).unwrap()) / norm(expected)
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn component<C: DeserializeOwned>(folder: &Path, name: &str) -> (C, Tensors) {
    let config = serde_json::from_slice(&std::fs::read(folder.join(name).join("config.json")).unwrap()).unwrap();
    let stem = if name.ends_with("_encoder") { "model" } else { "diffusion_pytorch_model" };
    (config, Tensors::open(&folder.join(name), stem).unwrap())
}

#[test]
fn text_encoder() {
    let folder = tiny::pipeline();
    let (config, files): (umt5::Config, _) = component(folder.path(), "text_encoder");
    let encoder = Umt5::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let ids: Vec<u32> = expected("text.ids").to_vec1::<i64>().unwrap().iter().map(|&id| id as u32).collect();
    let error = relative_error(&encoder.forward(&ids).unwrap(), &expected("text.hidden"));
    assert!(error < 1e-5, "{error:.1e}");
}

fn transformer(folder: &Path) -> Transformer {
    let (config, files): (TransformerConfig, _) = component(folder, "transformer");
    Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap()
}

#[test]
fn transformer_at_three_timesteps() {
    let folder = tiny::pipeline();
    let transformer = transformer(folder.path());
    let cond = transformer.cond(&randn(2, &[1, 20, 24])).unwrap();
    for timestep in [999, 421, 3] {
        let velocity = transformer.forward(&randn(1, &[1, 4, 3, 4, 6]), timestep as f64, &cond).unwrap();
        let error = relative_error(&velocity, &expected(&format!("transformer.{timestep}")));
        assert!(error < 1e-5, "timestep {timestep}: {error:.1e}");
    }
}

#[test]
fn a_forward_is_its_units() {
    let folder = tiny::pipeline();
    let transformer = transformer(folder.path());
    let latents = randn(1, &[1, 4, 3, 4, 6]);
    let cond = transformer.cond(&randn(2, &[1, 20, 24])).unwrap();
    let whole = transformer.forward(&latents, 500.0, &cond).unwrap();

    let mut state = transformer.begin(&latents, 500.0, &cond).unwrap();
    for unit in 0..transformer.units().len() {
        // Taking the features out and putting them back, into a state of its own, changes nothing.
        let features = transformer.features(&state);
        state = transformer.begin(&latents, 500.0, &cond).unwrap();
        transformer.set_features(&mut state, features);
        transformer.run_unit(unit, &mut state).unwrap();
    }
    let pieces = transformer.finish(state).unwrap();
    assert_eq!(transformer.units().len(), 6);
    assert_eq!(numbers(&pieces), numbers(&whole));
}

/// Decodes a corner of the test's latents and compares with what the reference makes of them.
fn decodes(name: &str, height: usize, width: usize) {
    let folder = tiny::pipeline();
    let (config, files): (VaeConfig, _) = component(folder.path(), name);
    let vae = Vae::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let latents = randn(1, &[1, 4, 3, 4, 6]).narrow(3, 0, height).unwrap().narrow(4, 0, width).unwrap();
    let mut decoding = vae.decoder(&latents).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = decoding.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(chunks.iter().map(|c| c.dim(0).unwrap()).collect::<Vec<_>>(), [1, 4, 4]);
    let frames = Tensor::cat(&chunks, 0).unwrap().transpose(0, 1).unwrap().unsqueeze(0).unwrap();
    let error = relative_error(&frames, &expected(&format!("{name}.frames")));
    assert!(error < 1e-5, "{error:.1e}");
}

#[test]
fn vae_decoder() {
    decodes("vae", 2, 3);
}

#[test]
fn vae_decoder_of_wan22() {
    decodes("vae22", 1, 2);
}

fn request(cache: &str) -> Request {
    Request {
        negative_prompt: Some(NEGATIVE.to_string()),
        size: Some((48, 32).into()),
        frames: Some(9),
        steps: Some(50),
        guidance: Some(5.0),
        seed: Some(7),
        max_sequence_length: Some(20),
        cache: Some(cache.parse::<CacheSpec>().unwrap()),
        ..Request::new(PROMPT)
    }
}

fn make(pipeline: &Pipeline, request: &Request) -> Video {
    generate(pipeline, request, &mut |_: Event| ControlFlow::Continue(())).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn open(folder: &Path) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

#[test]
fn the_whole_pipeline() {
    let folder = tiny::pipeline();
    let video = make(&open(folder.path()), &request("none"));
    let error = relative_error(&video.latents, &expected("pipeline.latents"));
    assert!(error < 1e-4, "{error:.1e}");
    let frames: Vec<u8> = expected("pipeline.frames").flatten_all().unwrap().to_vec1().unwrap();
    let farthest = video.frames.iter().zip(&frames).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(video.frames.len(), frames.len());
    assert!(farthest <= Some(1), "{farthest:?}");
}

#[test]
fn vae_encoders() {
    let folder = tiny::pipeline();
    let clip = randn(3, &[1, 3, 9, 16, 32]).clamp(-1.0, 1.0).unwrap().squeeze(0).unwrap().transpose(0, 1).unwrap();
    for name in ["vae", "vae22"] {
        let (config, files): (VaeConfig, _) = component(folder.path(), name);
        let encoder = VaeEncoder::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
        let mut encoding = encoder.encoder();
        let chunks = [(0, 1), (1, 4), (5, 4)];
        let latents: Vec<Tensor> = chunks
            .iter()
            .map(|&(first, n)| encoding.next_latent(&clip.narrow(0, first, n).unwrap().contiguous().unwrap()).unwrap())
            .collect();
        let latents = Tensor::cat(&latents, 2).unwrap();
        let statistic = |values: &[f64]| {
            Tensor::new(values, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().reshape((1, (), 1, 1, 1)).unwrap()
        };
        let (mean, std) = (statistic(&config.latents_mean), statistic(&config.latents_std));
        let expected = expected(&format!("{name}.mean")).broadcast_sub(&mean).unwrap().broadcast_div(&std).unwrap();
        let error = relative_error(&latents, &expected);
        assert!(error < 1e-5, "{name}: {error:.1e}");
        let wrong = encoding.next_latent(&clip.narrow(0, 0, 1).unwrap()).unwrap_err().to_string();
        assert!(wrong.contains("4 of a size divisible by"), "{wrong}");
    }
}

#[test]
fn image_encoder() {
    let folder = tiny::pipeline();
    let (config, files): (clip::Config, _) = component(folder.path(), "image_encoder");
    let encoder = ClipVision::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let error = relative_error(&encoder.forward(&randn(4, &[1, 3, 28, 28])).unwrap(), &expected("clip.hidden"));
    assert!(error < 1e-5, "{error:.1e}");
}

#[test]
fn transformer_with_a_picture() {
    let folder = tiny::pipeline();
    let latents = randn(1, &[1, 4, 3, 4, 6]);
    // image-to-video: the picture's features, and channels beside the latents'
    let (config, files): (TransformerConfig, _) = component(folder.path(), "transformer_i2v");
    let i2v = Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let text = randn(5, &[1, 512, 24]);
    let picture = ImageCond {
        embedding: Some(expected("clip.hidden")),
        channels: Some(randn(6, &[1, 8, 3, 4, 6])),
        still_frames: 0,
    };
    let cond = i2v.cond_with_image(&text, &picture).unwrap();
    let error = relative_error(&i2v.forward(&latents, 421.0, &cond).unwrap(), &expected("transformer_i2v.421"));
    assert!(error < 1e-5, "{error:.1e}");
    let missing = i2v.cond(&text).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("expected an image, found no image"), "{missing}");

    // a first frame that is known: its tokens are conditioned on timestep 0
    let dit = transformer(folder.path());
    let still = ImageCond { still_frames: 1, ..ImageCond::default() };
    let cond = dit.cond_with_image(&randn(2, &[1, 20, 24]), &still).unwrap();
    let error = relative_error(&dit.forward(&latents, 421.0, &cond).unwrap(), &expected("transformer.still"));
    assert!(error < 1e-5, "{error:.1e}");
}

fn from_picture(folder: &TempDir, size: (usize, usize), cache: &str) -> Request {
    Request {
        image: Some(folder.path().join("picture.png")),
        size: Some(size.into()),
        steps: Some(12),
        max_sequence_length: Some(512),
        ..request(cache)
    }
}

#[test]
fn videos_from_a_picture() {
    let i2v = tiny::with_parts("WanImageToVideoPipeline", false, &[("transformer", "transformer_i2v")]);
    let ti2v = tiny::with_parts("WanPipeline", true, &[("vae", "vae22")]);
    for (folder, name, size) in [(&i2v, "i2v", (48, 32)), (&ti2v, "ti2v", (64, 32))] {
        let pipeline = open(folder.path());
        let video = make(&pipeline, &from_picture(folder, size, "none"));
        let error = relative_error(&video.latents, &expected(&format!("{name}.latents")));
        assert!(error < 1e-3, "{name}: {error:.1e}");

        // Caching sees what the model sees; a trial pass thins the picture's channels out too.
        for cache in ["navicache,threshold=0.5,align_steps=4", "precisecache,threshold=2", "fbcache,threshold=0.5"] {
            let cached = make(&pipeline, &from_picture(folder, size, cache));
            assert!(cached.report.totals.units_reused > 0, "{name} {cache}: {}", cached.report.strip);
        }
        let off = make(&pipeline, &from_picture(folder, size, "trend,threshold=0"));
        assert_eq!(numbers(&off.latents), numbers(&video.latents), "{name}");

        // Without a size the picture's aspect ratio is kept: 37 x 29.
        let free = Request { size: None, steps: Some(1), frames: Some(1), ..from_picture(folder, size, "none") };
        let resolved = &make_small(folder, &free).report.request;
        let aspect = resolved.width as f64 / resolved.height as f64;
        assert!((aspect / (37.0 / 29.0) - 1.0).abs() < 0.1, "{name}: {}x{}", resolved.width, resolved.height);
    }
    let refused = |folder: &TempDir, request: &Request, part: &str| {
        let result = generate(&open(folder.path()), request, &mut |_| ControlFlow::Continue(()));
        let error = result.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&i2v, &request("none"), "`image` (none): this model makes video from a picture");
    refused(&tiny::pipeline(), &from_picture(&i2v, (48, 32), "none"), "makes video from text alone");
    let missing = Request { image: Some("no.png".into()), ..from_picture(&i2v, (48, 32), "none") };
    refused(&i2v, &missing, "no.png");
}

/// The same pipeline with a small size of its own.
fn make_small(folder: &TempDir, request: &Request) -> Video {
    let defaults = r#"{"width": 256, "height": 192, "frames": 5, "fps": 8, "steps": 2, "guidance": 1.0,
        "max_sequence_length": 32, "presets": "wan"}"#;
    std::fs::write(folder.path().join("navicache.json"), defaults).unwrap();
    make(&open(folder.path()), request)
}

#[test]
fn threshold_zero_is_the_uncached_video_bit_for_bit() {
    let folder = tiny::pipeline();
    let pipeline = open(folder.path());
    let plain = make(&pipeline, &request("none"));
    for cache in ["navicache,threshold=0", "easycache,threshold=0"] {
        let cached = make(&pipeline, &request(cache));
        assert_eq!(cached.report.totals.forwards_reused, 0);
        assert_eq!(numbers(&cached.latents), numbers(&plain.latents), "{cache}");
        assert_eq!(cached.frames, plain.frames, "{cache}");
    }
}

#[test]
fn nothing_leaks_from_one_video_to_the_next() {
    let folder = tiny::pipeline();
    let first = Request { seed: Some(1), ..request("navicache,threshold=0.5") };
    let second = Request { frames: Some(5), guidance: Some(3.0), ..request("easycache,threshold=0.3") };
    let pipeline = open(folder.path());
    for request in [&first, &second, &first] {
        let (here, fresh) = (make(&pipeline, request), make(&open(folder.path()), request));
        assert!(here.report.totals.forwards_reused > 0, "{}", here.report.strip);
        assert_eq!(here.report.strip, fresh.report.strip);
        assert_eq!(numbers(&here.latents), numbers(&fresh.latents));
        assert_eq!(here.frames, fresh.frames);
    }
}

#[test]
fn the_strip_is_what_the_seen_values_say() {
    // The decisions of a real run, repeated from the values in its report with the arithmetic of the paper's release.
    let folder = tiny::pipeline();
    let video = make(&open(folder.path()), &request("easycache,threshold=0.3,warmup_steps=5"));
    let (mut drift, mut magnitude, mut ratio) = (0.0, f64::NAN, f64::NAN);
    let steps = &video.report.steps;
    for step in steps {
        let branch = &step.branches["cond"];
        let seen = |name: &str| branch.seen.get(name).copied().unwrap_or(f64::NAN);
        let guarded = step.index < 5 || step.index + 1 == steps.len();
        drift += seen("input_change_since_visit") * ratio / magnitude;
        let reuse = !guarded && drift < 0.3;
        assert_eq!(
            branch.decision,
            if reuse { Ran::Reused } else { Ran::Computed },
            "step {} of {}",
            step.index,
            video.report.strip
        );
        if !reuse {
            drift = 0.0;
            magnitude = seen("output_magnitude");
            ratio = seen("output_change_since_compute") / seen("input_change_since_compute");
        }
    }
    assert!(video.report.totals.steps_reused > 5, "{}", video.report.strip);
}

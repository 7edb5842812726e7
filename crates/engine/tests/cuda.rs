//! Generations on a GPU against the same on the CPU:
//!
//! ```sh
//! cargo test --release -p navicache -p navicache-engine --features navicache/cuda --test cuda -- --include-ignored
//! ```
#![cfg(feature = "cuda")]

mod tiny;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use navicache_engine::{DeviceChoice, DtypeChoice, LoadOptions, Pipeline, Request, Video, generate};

const PROMPT: &str = "a red circle bouncing on a navy background";

fn made(model: &str, request: &Request, device: DeviceChoice, dtype: DtypeChoice) -> Video {
    let pipeline = Pipeline::open(model, &LoadOptions { device, dtype, ..LoadOptions::default() }).unwrap();
    generate(&pipeline, request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Root of the mean squared difference, of numbers about one large.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let here = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let difference = (here(found) - here(expected)).unwrap();
    f64::from(difference.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

/// In bf16, a product is known to some thousandths.
#[test]
#[ignore = "needs a CUDA GPU"]
fn the_gpu_makes_the_video_of_the_cpu() {
    for cache in ["none", "navicache:mid"] {
        let request =
            Request { steps: Some(20), frames: Some(9), cache: Some(cache.parse().unwrap()), ..Request::new(PROMPT) };
        let expected = made("demo", &request, DeviceChoice::Cpu, DtypeChoice::F32);
        for (dtype, tolerance) in [(DtypeChoice::F32, 1e-3), (DtypeChoice::Bf16, 0.1)] {
            let found = made("demo", &request, DeviceChoice::Cuda(0), dtype);
            let error = error(&found.latents, &expected.latents);
            assert!(error < tolerance, "{cache}, {dtype:?}: {error}");
        }
    }
}

/// Every family's transformer, text encoders and autoencoder, and methods that keep steps, blocks and parts of them.
#[test]
#[ignore = "needs a CUDA GPU"]
fn every_family_runs_as_on_the_cpu() {
    let mut problems = Vec::new();
    for cache in ["none", "easycache,threshold=0.1", "stride,threshold=0.05", "taylorseer:mid", "bwcache:mid"] {
        let request = Request { steps: Some(8), cache: Some(cache.parse().unwrap()), ..Request::new(PROMPT) };
        for (kind, folder, request) in tiny::every_kind(&request) {
            let model = folder.path().to_str().unwrap();
            let expected = made(model, &request, DeviceChoice::Cpu, DtypeChoice::F32);
            let found = made(model, &request, DeviceChoice::Cuda(0), DtypeChoice::F32);
            let strips = [&found, &expected].map(|video| &video.report.strip);
            let error = error(&found.latents, &expected.latents);
            if error >= 1e-3 || strips[0] != strips[1] {
                problems.push(format!("{kind}, {cache}: {error}, {strips:?}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

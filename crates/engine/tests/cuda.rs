//! A generation on a GPU against the same on the CPU:
//!
//! ```sh
//! cargo test --release -p navicache -p navicache-engine --features navicache/cuda --test cuda -- --include-ignored
//! ```
#![cfg(feature = "cuda")]

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use navicache_engine::{DeviceChoice, DtypeChoice, LoadOptions, Pipeline, Request, generate};

/// The final latents of the built-in model, uncached.
fn latents(device: DeviceChoice, dtype: DtypeChoice) -> Vec<f32> {
    let pipeline = Pipeline::open("demo", &LoadOptions { device, dtype, ..LoadOptions::default() }).unwrap();
    let request = Request {
        steps: Some(8),
        frames: Some(9),
        cache: Some("none".parse().unwrap()),
        ..Request::new("a red circle bouncing on a navy background")
    };
    let video = generate(&pipeline, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    let latents = video.latents.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    latents.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn the_gpu_makes_the_video_of_the_cpu() {
    let expected = latents(DeviceChoice::Cpu, DtypeChoice::F32);
    // In bf16, a product is known to some thousandths; the latents are about one large.
    for (dtype, tolerance) in [(DtypeChoice::F32, 1e-3), (DtypeChoice::Bf16, 0.1)] {
        let found = latents(DeviceChoice::Cuda(0), dtype);
        let squares = expected.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let error = (squares / expected.len() as f32).sqrt();
        assert!(error < tolerance, "{dtype:?}: {error}");
    }
}

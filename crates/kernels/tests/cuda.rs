//! Kernels for GPUs: that they compile, anywhere; and what they compute, against the plain loops, where there is a GPU:
//!
//! ```sh
//! cargo test --release -p navicache -p navicache-kernels --features navicache/cuda --test cuda -- --include-ignored
//! ```
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor};
use navicache_kernels::{self as kernels, Activation, Convolution, Edge, Level, Precision, Resize, cuda, dense};
use proptest::prelude::*;

#[test]
fn every_file_compiles_for_every_architecture() {
    for architecture in cuda::ARCHITECTURES {
        let files = cuda::compile_all(architecture).unwrap();
        assert_eq!(files.len(), if architecture == 90 { 4 } else { 3 });
        for (name, ptx) in files {
            assert!(ptx.contains(&format!(".target sm_{architecture}")) && ptx.contains(".entry"), "{name}");
        }
    }
}

fn gpu() -> Device {
    thread_local!(static GPU: Device = cuda::open(0).unwrap());
    GPU.with(Device::clone)
}

/// Whether `f` gives on the GPU what it gives in plain loops, as close as `tolerance`, relative to one or to the
/// numbers if they are greater. Inputs are rounded to bf16 first where `dtype` says so, and stay f32 on the CPU.
fn close(
    inputs: &[&Tensor],
    dtype: DType,
    tolerance: f32,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    let here = inputs.iter().map(|x| x.to_dtype(dtype)?.to_dtype(DType::F32)).collect::<Result<Vec<_>>>().unwrap();
    let there = inputs.iter().map(|x| x.to_dtype(dtype)?.to_device(&gpu())).collect::<Result<Vec<_>>>().unwrap();
    let plain = Level::PLAIN.scope(|| f(&here)).unwrap();
    let fast = f(&there).unwrap().to_device(&Device::Cpu).unwrap();
    prop_assert_eq!(fast.dims(), plain.dims());
    let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (i, (fast, plain)) in numbers(&fast).into_iter().zip(numbers(&plain)).enumerate() {
        let same = fast == plain || (fast.is_nan() && plain.is_nan());
        let near = (fast - plain).abs() <= tolerance * plain.abs().max(1.0);
        prop_assert!(same || near, "{} instead of {} at {}", fast, plain, i);
    }
    Ok(())
}

/// What a test of bf16 asks for, where inputs are rounded already.
fn of_device(x: &Tensor) -> Precision {
    if x.device().is_cpu() { Precision::F32 } else { Precision::Bf16 }
}

/// Normally distributed numbers that follow from a seed.
fn numbers(shape: &[usize], seed: u64, size: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let numbers = (0..shape.iter().product()).map(|_| size * (next() + next() + next()));
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

/// A bias that hides some keys, and from every fifth query all.
fn hidden(shape: &[usize], seed: u64) -> Tensor {
    let width = *shape.last().unwrap();
    let mut x: Vec<f32> = numbers(shape, seed, 1.0).flatten_all().unwrap().to_vec1().unwrap();
    for (i, row) in x.chunks_mut(width.max(1)).enumerate() {
        row.iter_mut().filter(|x| i % 5 == 0 || **x < -0.5).for_each(|x| *x = f32::NEG_INFINITY);
    }
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap()
}

/// Sizes about the edges of warps, blocks and tiles, and others.
fn size(most: usize) -> impl Strategy<Value = usize> {
    let edges =
        [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257].into_iter().filter(|&n| n <= most);
    prop_oneof![1..=most, prop::sample::select(edges.collect::<Vec<_>>())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn elements(n in size(40), pairs in size(300), heads in 1usize..4, seed: u64, size in prop::sample::select(vec![0.01f32, 1.0, 20.0])) {
        let x = numbers(&[n, 2 * pairs], seed, size);
        close(&[&x], DType::F32, 1e-6, |x| kernels::gelu(&x[0]))?;
        close(&[&x], DType::F32, 1e-6, |x| kernels::silu(&x[0]))?;
        close(&[&x], DType::F32, 1e-6, |x| kernels::silu(&x[0].t()?))?;
        let (columns, cos, sin) = (numbers(&[n, heads, 2 * pairs], seed, 1.0), numbers(&[n, pairs], seed ^ 1, 1.0), numbers(&[n, pairs], seed ^ 2, 1.0));
        close(&[&columns, &cos, &sin], DType::F32, 2e-6, |x| kernels::rotate_pairs(&x[0].transpose(0, 1)?, &x[1], &x[2]))?;
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows(n in size(40), dim in size(600), deep: bool, seed: u64, size in prop::sample::select(vec![0.0f32, 0.01, 1.0, 30.0]), far in -1000f64..1000.0) {
        let dim = if deep { dim + 3000 } else { dim };
        let (x, scale, shift) = (numbers(&[n, dim], seed, size), numbers(&[dim], seed ^ 1, 1.0), numbers(&[dim], seed ^ 2, 1.0));
        let moved = (&x + far).unwrap();
        let tolerance = if size < 1.0 { 2e-2 } else { 1e-3 };
        for (x, tolerance) in [(&x, 1e-5), (&moved, tolerance)] {
            close(&[x, &scale, &shift], DType::F32, tolerance, |x| kernels::layer_norm(&x[0], &x[1], &x[2], 1e-6))?;
            close(&[x, &scale, &shift], DType::F32, tolerance, |x| kernels::modulated_layer_norm(&x[0], &x[1], &x[2], 1e-6))?;
            close(&[x, &scale], DType::F32, 1e-5, |x| kernels::rms_norm(&x[0], &x[1], 1e-6))?;
        }
        close(&[&x], DType::F32, 2e-6, |x| kernels::softmax_last_dim(&x[0]))?;
        close(&[&hidden(&[n, dim], seed)], DType::F32, 2e-6, |x| kernels::softmax_last_dim(&x[0]))?;
        close(&[&x, &x, &scale], DType::F32, 1e-5, |x| kernels::gated_residual(&x[0], &x[1], &x[2]))?;
    }

    /// Products of bf16 are exact in f32, so that only sums differ.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn linear(n in size(200), inputs in size(600), outputs in size(300), seed: u64) {
        let (x, w, bias) = (numbers(&[n, inputs], seed, 1.0), numbers(&[outputs, inputs], seed ^ 1, 1.0), numbers(&[outputs], seed ^ 2, 1.0));
        let product = |x: &[Tensor], then: Activation| match x[0].device() {
            Device::Cpu => kernels::linear(&x[0], &dense(&x[1])?, x.get(2), then, Precision::Bf16),
            _ => kernels::linear_on_device(&x[0], &x[1], x.get(2), then, Precision::Bf16),
        };
        close(&[&x, &w, &bias], DType::BF16, 1e-4, |x| product(x, Activation::None))?;
        close(&[&x, &w, &bias], DType::BF16, 1e-4, |x| product(x, Activation::Gelu))?;
        close(&[&x, &w], DType::BF16, 1e-4, |x| product(x, Activation::None))?;
        close(&[&x], DType::F32, 5e-3, |x| kernels::gelu_for_bf16(&x[0])?.to_dtype(DType::F32))?;
    }

    /// Heads that are columns of the tokens' rows, and heads after each other.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn attention_of_a_projection(heads in 1usize..4, n in size(200), m in size(300), wide: bool, seed: u64) {
        let d = if wide { 128 } else { 64 };
        let (q, k, v) = (numbers(&[n, heads, d], seed, 1.0), numbers(&[m, heads, d], seed ^ 1, 1.0), numbers(&[heads, m, d], seed ^ 2, 1.0));
        close(&[&q, &k, &v], DType::BF16, 2e-2, |x| {
            let [q, k] = [0, 1].map(|i| x[i].transpose(0, 1));
            kernels::attention(&q?, &k?, &x[2], 0.1, None, of_device(&x[0]))
        })?;
    }

    /// Of a video autoencoder.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn convolutions(frames in 1usize..4, inputs in size(20), outputs in size(20), h in 1usize..12, w in 1usize..12, time in 1usize..4, wide: bool, resize in 0usize..3, seed: u64) {
        let resize = [Resize::Same, Resize::Doubled, Resize::Halved][resize];
        let (side, h, w) = (if wide { 3 } else { 1 }, 2 * h, 2 * w);
        let x = numbers(&[frames, inputs, h, w], seed, 1.0);
        let (weight, bias) = (numbers(&[outputs, inputs, time, side, side], seed ^ 1, 0.3), numbers(&[outputs], seed ^ 2, 1.0));
        let before = (time > 1).then(|| numbers(&[time - 1, inputs, h, w], seed ^ 3, 1.0));
        for edge in [Edge::Zeros, Edge::Repeated] {
            close(&[&x, &weight, &bias], DType::F32, 1e-4, |x| {
                let before = before.as_ref().map(|before| before.to_device(x[0].device())).transpose()?;
                Convolution::new(&x[1], Some(&x[2]), edge, resize, Precision::F32)?.forward(&x[0], before.as_ref(), None)
            })?;
        }
        let scale = numbers(&[inputs], seed ^ 4, 1.0);
        close(&[&x, &scale], DType::F32, 1e-5, |x| kernels::channel_rms_norm(&x[0], &x[1], Activation::Silu))?;
    }

    /// The loops take the rounded inputs in f32. In bf16, exponentials are known to some thousandths.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn attention(heads in 1usize..4, n in size(200), m in size(300), wide: bool, seed: u64, size in prop::sample::select(vec![0.3f32, 1.0, 8.0])) {
        let d = if wide { 128 } else { 64 };
        let (q, k, v) = (numbers(&[heads, n, d], seed, size), numbers(&[heads, m, d], seed ^ 1, 1.0), numbers(&[heads, m, d], seed ^ 2, 1.0));
        let scale = 1.0 / (d as f64).sqrt();
        close(&[&q, &k, &v], DType::BF16, 2e-2, |x| kernels::attention(&x[0], &x[1], &x[2], scale, None, of_device(&x[0])))?;
        for bias in [hidden(&[heads, n, m], seed ^ 3), hidden(&[1, n, m], seed ^ 4), hidden(&[heads, m, n], seed ^ 5).transpose(1, 2).unwrap()] {
            let on = |x: &Tensor| bias.to_device(x.device());
            close(&[&q, &k, &v], DType::BF16, 2e-2, |x| kernels::attention(&x[0], &x[1], &x[2], scale, Some(&on(&x[0])?), of_device(&x[0])))?;
        }
    }

    /// What there is no kernel for goes through cuBLAS.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn attention_by_products(heads in 1usize..4, n in size(70), m in size(300), d in size(100), seed: u64) {
        let (q, k, v) = (numbers(&[heads, n, d], seed, 1.0), numbers(&[heads, m, d], seed ^ 1, 1.0), numbers(&[heads, m, d], seed ^ 2, 1.0));
        let bias = hidden(&[1, n, m], seed ^ 3);
        close(&[&q, &k, &v, &bias], DType::F32, 1e-4, |x| kernels::attention(&x[0], &x[1], &x[2], 0.3, Some(&x[3]), Precision::F32))?;
    }
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn extreme_values() {
    let x =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, 88.7, -88.0, -103.0, 1e10];
    let x = Tensor::new(&x, &Device::Cpu).unwrap();
    close(&[&x], DType::F32, 1e-6, |x| kernels::gelu(&x[0])).unwrap();
    close(&[&x], DType::F32, 1e-6, |x| kernels::silu(&x[0])).unwrap();
    close(&[&x], DType::F32, 1e-6, |x| kernels::softmax_last_dim(&x[0])).unwrap();
}

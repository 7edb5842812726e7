//! Layers against their definitions, written as plain loops.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use navicache_models::nn::{CausalConv3d, Conv2d, ConvState, Grid, Rope3d, attention, patchify, unpatchify};
use navicache_models::{Precision, Result, Source, Weights};
use proptest::prelude::*;

/// Tensors by name.
struct Named(HashMap<&'static str, Tensor>);

impl Source for Named {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|t| t.dims().to_vec())
    }

    fn load(&self, name: &str, _: Option<DType>, _: &Device) -> Result<Tensor> {
        Ok(self.0[name].clone())
    }

    fn place(&self, _: &str) -> String {
        "a test".to_string()
    }
}

/// Numbers in [-1, 1] that look random.
fn tensor(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "at {i}: {a}, expected {b}");
    }
}

/// Convolution with zeros around every frame and before the first: x (frames, in, h, w), weight (out, in, time, size,
/// size).
fn convolved(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Vec<f32> {
    let (frames, inputs, h, w) = x.dims4().unwrap();
    let (outputs, _, time, size, _) = weight.dims5().unwrap();
    let (x, weight, bias) = (values(x), values(weight), values(bias));
    let margin = size / 2;
    let mut out = Vec::new();
    for f in 0..frames {
        for o in 0..outputs {
            for (y, column) in (0..h).flat_map(|y| (0..w).map(move |column| (y, column))) {
                let mut sum = bias[o] as f64;
                for (t, i) in (0..time).flat_map(|t| (0..inputs).map(move |i| (t, i))) {
                    for (dy, dx) in (0..size).flat_map(|dy| (0..size).map(move |dx| (dy, dx))) {
                        let (frame, row, col) = (f + t, y + dy, column + dx);
                        let inside = frame + 1 >= time
                            && (margin..h + margin).contains(&row)
                            && (margin..w + margin).contains(&col);
                        if inside {
                            let at = (((frame + 1 - time) * inputs + i) * h + row - margin) * w + col - margin;
                            sum +=
                                x[at] as f64 * weight[(((o * inputs + i) * time + t) * size + dy) * size + dx] as f64;
                        }
                    }
                }
                out.push(sum as f32);
            }
        }
    }
    out
}

fn layer(weight: &Tensor, bias: &Tensor) -> Named {
    Named(HashMap::from([("weight", weight.clone()), ("bias", bias.clone())]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn causal_convolution(
        (inputs, outputs) in (1usize..4, 1usize..4), time in 1usize..4, size in prop::sample::select(vec![1usize, 3]),
        (h, w) in (1usize..6, 1usize..6), chunks in prop::collection::vec(1usize..3, 1..4), seed: u32,
    ) {
        let (weight, bias) = (tensor(&[outputs, inputs, time, size, size], seed), tensor(&[outputs], seed ^ 1));
        let source = layer(&weight, &bias);
        let conv = CausalConv3d::new(inputs, outputs, time, size, Weights::new(&source, &Device::Cpu, None)).unwrap();
        let frames = chunks.iter().sum();
        let x = tensor(&[frames, inputs, h, w], seed ^ 2);
        let whole = conv.forward(&x, &mut ConvState::default()).unwrap();
        assert_close(&values(&whole), &convolved(&x, &weight, &bias));

        // However the clip is cut, the result is the same.
        let (mut state, mut first, mut pieces) = (ConvState::default(), 0, Vec::new());
        for n in chunks {
            pieces.push(conv.forward(&x.narrow(0, first, n).unwrap(), &mut state).unwrap());
            first += n;
        }
        prop_assert_eq!(values(&Tensor::cat(&pieces, 0).unwrap()), values(&whole));
    }

    #[test]
    fn convolution_of_frames(
        (inputs, outputs) in (1usize..4, 1usize..4), size in prop::sample::select(vec![1usize, 3]),
        (h, w) in (1usize..6, 1usize..6), frames in 1usize..3, seed: u32,
    ) {
        let (weight, bias) = (tensor(&[outputs, inputs, size, size], seed), tensor(&[outputs], seed ^ 1));
        let source = layer(&weight, &bias);
        let conv = Conv2d::new(inputs, outputs, size, Weights::new(&source, &Device::Cpu, None)).unwrap();
        let x = tensor(&[frames, inputs, h, w], seed ^ 2);
        let expected = convolved(&x, &weight.unsqueeze(2).unwrap(), &bias);
        assert_close(&values(&conv.forward(&x).unwrap()), &expected);
    }

    #[test]
    fn attention_of_every_head((heads, n, m, d) in (1usize..4, 1usize..7, 1usize..7, 1usize..5), biased: bool, seed: u32) {
        let (q, k, v) = (tensor(&[heads, n, d], seed), tensor(&[heads, m, d], seed ^ 1), tensor(&[heads, m, d], seed ^ 2));
        let bias = biased.then(|| tensor(&[heads, n, m], seed ^ 3));
        let found = values(&attention(&q, &k, &v, 0.7, bias.as_ref(), Precision::F32).unwrap());
        let (q, k, v) = (values(&q), values(&k), values(&v));
        let bias = bias.map_or(vec![0.0; heads * n * m], |b| values(&b));
        let mut expected = vec![0.0; n * heads * d];
        for h in 0..heads {
            for i in 0..n {
                let score = |j: usize| {
                    let dot: f64 = (0..d).map(|c| q[(h * n + i) * d + c] as f64 * k[(h * m + j) * d + c] as f64).sum();
                    (0.7 * dot + bias[(h * n + i) * m + j] as f64).exp()
                };
                let total: f64 = (0..m).map(score).sum();
                for c in 0..d {
                    let mixed: f64 = (0..m).map(|j| score(j) / total * v[(h * m + j) * d + c] as f64).sum();
                    expected[(i * heads + h) * d + c] = mixed as f32;
                }
            }
        }
        assert_close(&found, &expected);
    }

    #[test]
    fn patches_come_back((f, h, w) in (1usize..3, 1usize..4, 1usize..4), patch in prop::array::uniform3(1usize..3), c in 1usize..4, seed: u32) {
        let grid = Grid { frames: f, height: h, width: w };
        let [pf, ph, pw] = patch;
        let latents = tensor(&[1, c, f * pf, h * ph, w * pw], seed);
        let tokens = patchify(&latents, patch, grid).unwrap(); // (tokens, c * volume)
        // Patches go in with channels first and come out with channels last.
        let volume = pf * ph * pw;
        let last = tokens.reshape((grid.tokens(), c, volume)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let back = unpatchify(&last.reshape((grid.tokens(), volume * c)).unwrap(), c, patch, grid).unwrap();
        prop_assert_eq!(values(&back), values(&latents));
    }
}

#[test]
fn rotations_depend_on_distance_only() {
    // The product of a rotated query and a rotated key is the same wherever the pair stands.
    let grid = Grid { frames: 3, height: 4, width: 5 };
    let (cos, sin) = Rope3d::new([8, 6, 6], 10000.0, 8, &Device::Cpu).unwrap().at(grid).unwrap();
    let rotate = |x: &Tensor, token: usize| {
        let x = x.reshape((1, 1, 1, 20)).unwrap();
        let at = |t: &Tensor| t.narrow(0, token, 1).unwrap().contiguous().unwrap();
        candle_nn::rotary_emb::rope_i(&x, &at(&cos), &at(&sin)).unwrap()
    };
    let (q, k) = (tensor(&[20], 1), tensor(&[20], 2));
    let product = |a: [usize; 3], b: [usize; 3]| -> f32 {
        let token = |[f, h, w]: [usize; 3]| (f * 4 + h) * 5 + w;
        let product = (rotate(&q, token(a)) * rotate(&k, token(b))).unwrap();
        product.sum_all().unwrap().to_scalar().unwrap()
    };
    let here = product([0, 0, 0], [1, 2, 3]);
    assert!((here - product([1, 1, 1], [2, 3, 4])).abs() < 1e-5);
    assert!((here - product([0, 0, 0], [1, 2, 2])).abs() > 1e-3);
    assert!(
        Rope3d::new([8, 6, 6], 10000.0, 8, &Device::Cpu).unwrap().at(Grid { frames: 9, height: 1, width: 1 }).is_err()
    );
}

//! Every kernel at every level of the machine against its plain twin.

use candle_core::{DType, Device, Result, Tensor};
use navicache_kernels::{
    self as kernels, Activation, Convolution, Edge, Level, Panels, Precision, Resize, Rows, dense,
};
use proptest::prelude::*;

/// What `f` gives at each fast level, beside what it gives without vectors.
fn twins(f: impl Fn() -> Result<Tensor>) -> Vec<(Level, Tensor, Tensor)> {
    let fast = Level::available().iter().filter(|level| **level != Level::PLAIN);
    fast.map(|level| (*level, level.scope(&f).unwrap(), Level::PLAIN.scope(&f).unwrap())).collect()
}

/// Whether numbers are as close as `tolerance`, relative to one or to the numbers if they are greater. NaN is NaN.
fn close(f: impl Fn() -> Result<Tensor>, tolerance: f32) -> std::result::Result<(), TestCaseError> {
    for (level, fast, plain) in twins(f) {
        prop_assert_eq!(fast.dims(), plain.dims());
        let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, (fast, plain)) in numbers(&fast).into_iter().zip(numbers(&plain)).enumerate() {
            let same = fast == plain || (fast.is_nan() && plain.is_nan());
            let near = (fast - plain).abs() <= tolerance * plain.abs().max(1.0);
            prop_assert!(same || near, "{}: {} instead of {} at {}", level.name(), fast, plain, i);
        }
    }
    Ok(())
}

/// Numbers that follow from a seed, about `size` large, now and then 0 or a thousand times larger.
fn numbers(shape: &[usize], seed: u64, size: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let count = shape.iter().product();
    let numbers = (0..count).map(|_| {
        let x = (next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        match next() % 64 {
            0 => 0.0,
            1 if size > 1.0 => x * size * 1000.0,
            _ => x * size,
        }
    });
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

/// Some entries are hidden, and of some rows all.
fn hidden(shape: &[usize], seed: u64) -> Tensor {
    let width = *shape.last().unwrap();
    let mut x: Vec<f32> = numbers(shape, seed, 1.0).flatten_all().unwrap().to_vec1().unwrap();
    for (i, row) in x.chunks_mut(width.max(1)).enumerate() {
        let all = (i as u64 + seed).is_multiple_of(5);
        row.iter_mut().filter(|x| all || **x < -0.2).for_each(|x| *x = f32::NEG_INFINITY);
    }
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap()
}

/// Sizes about the edges of vectors and blocks, and others.
fn size(most: usize) -> impl Strategy<Value = usize> {
    let edges = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 512].into_iter().filter(|&n| n <= most);
    prop_oneof![1..=most, prop::sample::select(edges.collect::<Vec<_>>())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn activations(n in size(40), width in size(600), seed: u64, size in prop::sample::select(vec![0.01f32, 1.0, 20.0])) {
        let x = numbers(&[n, width], seed, size);
        close(|| kernels::gelu(&x), 1e-6)?;
        close(|| kernels::silu(&x), 1e-6)?;
        let turned = x.t().unwrap();
        close(|| kernels::gelu(&turned), 1e-6)?;
    }

    #[test]
    fn softmax(n in size(40), width in size(600), seed: u64, size in prop::sample::select(vec![0.0f32, 1.0, 50.0])) {
        let x = numbers(&[n, width], seed, size);
        close(|| kernels::softmax_last_dim(&x), 2e-6)?;
        close(|| kernels::softmax_last_dim(&hidden(&[n, width], seed)), 2e-6)?;
        close(|| kernels::softmax_last_dim(&x.t()?), 2e-6)?;
    }

    #[test]
    fn attention(
        heads in 1usize..4, n in size(110), m in size(600), d in size(160), seed: u64, size in prop::sample::select(vec![0.0f32, 1.0, 30.0])
    ) {
        let (q, k, v) = (numbers(&[heads, n, d], seed, size), numbers(&[heads, m, d], seed ^ 1, 1.0), numbers(&[heads, m, d], seed ^ 2, 1.0));
        let scale = 1.0 / (d as f64).sqrt();
        // Scores of some thousands are known to some ten-thousandths, and so are their exponentials.
        let tolerance = if size > 1.0 { 1e-2 } else { 2e-5 };
        close(|| kernels::attention(&q, &k, &v, scale, None, Precision::F32), tolerance)?;
        // Weights of the values are rounded against another greatest score. Of great scores, one more rounding decides
        // who wins.
        if size <= 1.0 {
            close(|| kernels::attention(&q, &k, &v, scale, None, Precision::Bf16), 1e-2)?;
        }
        let biases = [hidden(&[heads, n, m], seed ^ 3), hidden(&[1, n, m], seed ^ 4), hidden(&[heads, m, n], seed ^ 5).transpose(1, 2).unwrap()];
        for bias in biases {
            close(|| kernels::attention(&q, &k, &v, scale, Some(&bias), Precision::F32), tolerance)?;
        }
    }

    /// Heads that are columns of the same rows, as projections give them, and parts of longer tensors.
    #[test]
    fn strides(heads in 1usize..4, n in size(40), m in size(40), d in size(40), seed: u64) {
        let split = |tokens: usize, seed: u64| {
            let x = numbers(&[tokens + 2, heads * d], seed, 1.0).narrow(0, 1, tokens).unwrap();
            x.reshape((tokens, heads, d)).unwrap().transpose(0, 1).unwrap()
        };
        let (q, k, v) = (split(n, seed), split(m, seed ^ 1), split(m, seed ^ 2));
        close(|| kernels::attention(&q, &k, &v, 0.3, None, Precision::F32), 1e-5)?;
        close(|| kernels::attention(&q, &k, &v, 0.3, None, Precision::Bf16), 1e-2)?;
        for level in Level::available() {
            let run = |q: &Tensor, k: &Tensor, v: &Tensor| level.scope(|| kernels::attention(q, k, v, 0.3, None, Precision::F32)).unwrap();
            let there = run(&q, &k, &v).to_vec2::<f32>().unwrap();
            let copied = run(&q.contiguous().unwrap(), &k.contiguous().unwrap(), &v.contiguous().unwrap());
            prop_assert_eq!(there, copied.to_vec2::<f32>().unwrap());
        }
    }

    /// A query's result is the same bits whatever other queries there are.
    #[test]
    fn queries_alone(n in 2usize..230, m in size(300), d in size(70), seed: u64, at: prop::sample::Index) {
        let (q, k, v) = (numbers(&[2, n, d], seed, 1.0), numbers(&[2, m, d], seed ^ 1, 1.0), numbers(&[2, m, d], seed ^ 2, 1.0));
        let at = at.index(n);
        for level in Level::available() {
            level.scope(|| {
                let all = kernels::attention(&q, &k, &v, 0.2, None, Precision::F32).unwrap().narrow(0, at, 1).unwrap();
                let one = kernels::attention(&q.narrow(1, at, 1).unwrap(), &k, &v, 0.2, None, Precision::F32).unwrap();
                assert_eq!(all.to_vec2::<f32>().unwrap(), one.to_vec2::<f32>().unwrap());
            });
        }
    }

    #[test]
    fn norms(n in size(40), dim in size(600), seed: u64, size in prop::sample::select(vec![0.0f32, 0.01, 1.0, 30.0]), far in -1000f64..1000.0) {
        let x = numbers(&[n, dim], seed, size);
        let (scale, shift) = (numbers(&[dim], seed ^ 1, 1.0), numbers(&[dim], seed ^ 2, 1.0));
        close(|| kernels::layer_norm(&x, &scale, &shift, 1e-6), 1e-5)?;
        close(|| kernels::modulated_layer_norm(&x, &scale, &shift, 1e-6), 1e-5)?;
        close(|| kernels::rms_norm(&x, &scale, 1e-6), 1e-5)?;
        // Far from zero: the mean takes away all but what varies, and a few digits of that.
        let x = (x + far).unwrap();
        let tolerance = if size < 1.0 { 2e-2 } else { 1e-3 };
        close(|| kernels::layer_norm(&x, &scale, &shift, 1e-6), tolerance)?;
        close(|| kernels::rms_norm(&x, &scale, 1e-6), 1e-5)?;
    }

    #[test]
    fn norms_of_pictures(
        frames in 1usize..4, (groups, each) in (1usize..6, 1usize..8), (h, w) in (size(20), size(40)), seed: u64,
        size in prop::sample::select(vec![0.0f32, 0.01, 1.0, 30.0]), far in -1000f64..1000.0, is_silu: bool,
    ) {
        let activation = if is_silu { Activation::Silu } else { Activation::None };
        let x = numbers(&[frames, groups * each, h, w], seed, size);
        let (scale, shift) = (numbers(&[groups * each], seed ^ 1, 1.0), numbers(&[groups * each], seed ^ 2, 1.0));
        close(|| kernels::channel_rms_norm(&x, &scale, activation), 1e-5)?;
        close(|| kernels::group_norm(&x, &scale, &shift, groups, 1e-6, activation), 1e-5)?;
        let x = (x + far).unwrap();
        let tolerance = if size < 1.0 { 2e-2 } else { 1e-3 };
        close(|| kernels::channel_rms_norm(&x, &scale, activation), 1e-5)?;
        close(|| kernels::group_norm(&x, &scale, &shift, groups, 1e-6, activation), tolerance)?;
        let turned = x.transpose(2, 3).unwrap();
        close(|| kernels::channel_rms_norm(&turned, &scale, activation), 1e-5)?;
    }

    #[test]
    fn residuals(n in size(40), dim in size(600), seed: u64) {
        let (x, y, gate) = (numbers(&[n, dim], seed, 1.0), numbers(&[n, dim], seed ^ 1, 1.0), numbers(&[dim], seed ^ 2, 1.0));
        close(|| kernels::gated_residual(&x, &y, &gate), 1e-6)?;
        close(|| kernels::residual(&x, &y), 0.0)?;
        let twisted = numbers(&[dim, n], seed, 1.0);
        close(|| kernels::residual(&x, &twisted.t()?), 0.0)?;
        close(|| kernels::gated_residual(&x, &twisted.t()?, &gate), 1e-6)?;
    }

    /// Both round what they multiply, so that only sums differ.
    #[test]
    fn linear(n in size(40), inputs in size(600), outputs in size(300), seed: u64, deep: bool) {
        let inputs = if deep { inputs + 1300 } else { inputs };
        let x = numbers(&[n, inputs], seed, 1.0);
        let wide = numbers(&[outputs, inputs], seed ^ 1, 1.0);
        let w = wide.to_dtype(DType::BF16).unwrap();
        let bias = numbers(&[outputs], seed ^ 2, 1.0);
        for (w, precision) in [(&w, Precision::Bf16), (&wide, Precision::F32), (&wide, Precision::Bf16), (&w, Precision::F32)] {
            let w = dense(w).unwrap();
            close(|| kernels::linear(&x, &w, Some(&bias), Activation::None, precision), 5e-5)?;
            close(|| kernels::linear(&x, &w, None, Activation::None, precision), 5e-5)?;
            close(|| kernels::linear(&x, &w, Some(&bias), Activation::Gelu, precision), 5e-5)?;
            // The same bits as from panels that were packed before, for this level or another.
            let panels = Panels::new(&w, precision).unwrap();
            for level in Level::available() {
                let run = |w: &dyn Rows| level.scope(|| kernels::linear(&x, w, None, Activation::None, precision)).unwrap();
                prop_assert_eq!(run(&panels).to_vec2::<f32>().unwrap(), run(&w).to_vec2::<f32>().unwrap());
            }
            // The same bits as one after the other.
            let together = kernels::linear(&x, &w, None, Activation::Gelu, precision).unwrap();
            let apart = kernels::gelu(&kernels::linear(&x, &w, None, Activation::None, precision).unwrap()).unwrap();
            prop_assert_eq!(together.to_vec2::<f32>().unwrap(), apart.to_vec2::<f32>().unwrap());
        }
    }

    /// Weights are packed for a level, so that they are so inside of it.
    #[test]
    fn convolutions(
        (inputs, outputs) in (size(40), size(40)), time in 1usize..4, size in prop::sample::select(vec![1usize, 3, 5]), (h, w) in (size(12), size(40)),
        frames in 1usize..4, memory in 0usize..3, is_repeated: bool, resize in prop::sample::select(vec![Resize::Same, Resize::Doubled, Resize::Halved]),
        is_plain: bool, precision in prop::sample::select(vec![Precision::F32, Precision::Bf16]), seed: u64,
    ) {
        let edge = if is_repeated { Edge::Repeated } else { Edge::Zeros };
        let weight = numbers(&[outputs, inputs, time, size, size], seed, 1.0);
        let x = numbers(&[memory.min(time - 1) + frames, inputs, h, w], seed ^ 1, 1.0);
        let (before, x) = (x.narrow(0, 0, memory.min(time - 1)).unwrap(), x.narrow(0, memory.min(time - 1), frames).unwrap());
        let (bias, before) = (numbers(&[outputs], seed ^ 2, 1.0), (memory > 0).then_some(&before));
        let tolerance = if precision == Precision::F32 { 3e-5 } else { 5e-5 };
        if is_plain {
            close(|| Convolution::new(&weight, None, edge, resize, precision)?.forward(&x, before, None), tolerance)?;
        } else {
            let conv = || Convolution::new(&weight, Some(&bias), edge, resize, precision);
            let shape = Level::PLAIN.scope(|| conv()?.forward(&x, before, None)).unwrap().dims().to_vec();
            let residual = numbers(&shape, seed ^ 3, 1.0);
            close(|| conv()?.forward(&x, before, Some(&residual)), tolerance)?;
        }
    }

    /// However a clip is cut, its frames are the same bits.
    #[test]
    fn convolutions_of_chunks(
        (inputs, outputs) in (size(20), size(20)), time in 1usize..4, size in prop::sample::select(vec![1usize, 3]), (h, w) in (size(9), size(9)),
        chunks in prop::collection::vec(1usize..4, 1..4), is_repeated: bool, precision in prop::sample::select(vec![Precision::F32, Precision::Bf16]), seed: u64,
    ) {
        let edge = if is_repeated { Edge::Repeated } else { Edge::Zeros };
        let weight = numbers(&[outputs, inputs, time, size, size], seed, 1.0);
        let x = numbers(&[chunks.iter().sum(), inputs, h, w], seed ^ 1, 1.0);
        for level in Level::available() {
            level.scope(|| {
                let conv = Convolution::new(&weight, None, edge, Resize::Same, precision).unwrap();
                let whole = conv.forward(&x, None, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let (mut first, mut parts) = (0, Vec::new());
                for chunk in &chunks {
                    let memory = first.min(time - 1);
                    let before = x.narrow(0, first - memory, memory).unwrap();
                    let part = conv.forward(&x.narrow(0, first, *chunk).unwrap(), Some(&before), None).unwrap();
                    parts.extend(part.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                    first += chunk;
                }
                assert_eq!(whole, parts, "{}", level.name());
            });
        }
    }

    #[test]
    fn rotations(heads in 1usize..4, n in size(60), pairs in size(80), seed: u64) {
        let x = numbers(&[heads, n, 2 * pairs], seed, 1.0);
        let (cos, sin) = (numbers(&[n, pairs], seed ^ 1, 1.0), numbers(&[n, pairs], seed ^ 2, 1.0));
        close(|| kernels::rotate_pairs(&x, &cos, &sin), 1e-6)?;
        let theirs = candle_nn::rotary_emb::rope_i(&x.unsqueeze(0).unwrap(), &cos, &sin).unwrap().squeeze(0).unwrap();
        close(|| if Level::current() == Level::PLAIN { Ok(theirs.clone()) } else { kernels::rotate_pairs(&x, &cos, &sin) }, 1e-6)?;
        let columns = numbers(&[n, heads, 2 * pairs], seed, 1.0).transpose(0, 1).unwrap();
        close(|| kernels::rotate_pairs(&columns, &cos, &sin), 1e-6)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// What surrounds AMX's tiles, where there are none: packing, edges, strides; with as many rows and numbers as are
    /// no whole tiles.
    #[test]
    fn emulated_tiles(n in size(70), m in size(70), (d, inputs, outputs) in (size(40), size(90), size(70)), heads in 1usize..3, seed: u64) {
        let Some(level) = Level::emulated() else { return Ok(()) };
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = |f: &dyn Fn() -> Result<Tensor>, tolerance: f32| {
            let (ours, plain) = (values(level.scope(f).unwrap()), values(Level::PLAIN.scope(f).unwrap()));
            for (i, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
                prop_assert!((ours - plain).abs() <= tolerance * plain.abs().max(1.0), "{ours} instead of {plain} at {i}");
            }
            Ok(())
        };
        let (x, w, bias) = (numbers(&[n, inputs], seed, 1.0), numbers(&[outputs, inputs], seed ^ 1, 1.0), numbers(&[outputs], seed ^ 2, 1.0));
        let w = dense(&w).unwrap();
        same(&|| kernels::linear(&x, &w, Some(&bias), Activation::Gelu, Precision::Bf16), 5e-5)?;
        let panels = level.scope(|| Panels::new(&w, Precision::Bf16)).unwrap();
        same(&|| kernels::linear(&x, &panels, None, Activation::None, Precision::Bf16), 5e-5)?;
        let split = |tokens: usize, seed: u64| {
            let x = numbers(&[tokens + 2, heads * d], seed, 1.0).narrow(0, 1, tokens).unwrap();
            x.reshape((tokens, heads, d)).unwrap().transpose(0, 1).unwrap()
        };
        let (q, k, v) = (split(n, seed), split(m, seed ^ 1), split(m, seed ^ 2));
        same(&|| kernels::attention(&q, &k, &v, 0.3, None, Precision::Bf16), 1e-2)?;
    }

    /// The same around convolutions.
    #[test]
    fn emulated_convolutions(
        (inputs, outputs) in (size(40), size(40)), time in 1usize..4, size in prop::sample::select(vec![1usize, 3, 5]), (h, w) in (size(9), size(20)),
        frames in 1usize..3, memory in 0usize..3, is_repeated: bool, resize in prop::sample::select(vec![Resize::Same, Resize::Doubled, Resize::Halved]), seed: u64,
    ) {
        let Some(level) = Level::emulated() else { return Ok(()) };
        let edge = if is_repeated { Edge::Repeated } else { Edge::Zeros };
        let (weight, bias) = (numbers(&[outputs, inputs, time, size, size], seed, 1.0), numbers(&[outputs], seed ^ 1, 1.0));
        let memory = memory.min(time - 1);
        let x = numbers(&[memory + frames, inputs, h, w], seed ^ 2, 1.0);
        let (before, x) = (x.narrow(0, 0, memory).unwrap(), x.narrow(0, memory, frames).unwrap());
        let conv = || Convolution::new(&weight, Some(&bias), edge, resize, Precision::Bf16)?.forward(&x, (memory > 0).then_some(&before), None);
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, plain) = (level.scope(conv).unwrap(), Level::PLAIN.scope(conv).unwrap());
        prop_assert_eq!(ours.dims(), plain.dims());
        for (i, (ours, plain)) in values(ours).into_iter().zip(values(plain)).enumerate() {
            prop_assert!((ours - plain).abs() <= 5e-5 * plain.abs().max(1.0), "{} instead of {} at {}", ours, plain, i);
        }
    }
}

/// Candle shapes the tiles of a thread once, for its quantised products; ours in between change nothing there, nor
/// theirs here.
#[test]
fn beside_the_tiles_of_candle() {
    use candle_core::Module;
    use candle_core::quantized::{GgmlDType, QMatMul, QTensor};

    let (x, w) = (numbers(&[64, 512], 1, 1.0), numbers(&[64, 512], 2, 1.0));
    let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for level in Level::available() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            let ours = || {
                level
                    .scope(|| kernels::linear(&x, &dense(&w).unwrap(), None, Activation::None, Precision::Bf16))
                    .unwrap()
            };
            let alone = values(ours());
            for dtype in [GgmlDType::Q4K, GgmlDType::Q8_0] {
                let theirs = QMatMul::from_qtensor(QTensor::quantize(&w, dtype).unwrap()).unwrap();
                let before = values(theirs.forward(&x).unwrap());
                assert_eq!(values(ours()), alone, "{}", level.name());
                assert_eq!(values(theirs.forward(&x).unwrap()), before, "{}", level.name());
                assert_eq!(values(ours()), alone, "{}", level.name());
            }
        });
    }
}

/// Quantised blocks of any bytes are widened to the bits that candle gives, at every level.
#[test]
fn widening_is_candle_s() {
    use candle_core::CpuStorage;
    use candle_core::quantized::GgmlDType;

    let mut state = 7u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K] {
        let bytes: Vec<u8> = (0..37 * kind.type_size()).map(|_| byte()).collect();
        let count = 37 * kind.block_size();
        let CpuStorage::F32(theirs) = kind.from_data(bytes.clone().into()).dequantize(count).unwrap() else { panic!() };
        for level in Level::available() {
            let mut ours = vec![0.0; count];
            assert!(level.scope(|| kernels::widen(kind, &bytes, &mut ours)));
            for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
                assert!(same, "{kind:?} {} {i}: {ours} instead of {theirs}", level.name());
            }
        }
        assert!(!kernels::widen(kind, &bytes[1..], &mut vec![0.0; count]));
        assert!(!kernels::widen(kind, &bytes, &mut vec![0.0; count - 1]));
    }
    assert!(!kernels::widen(GgmlDType::Q2K, &[0; 84], &mut [0.0; 256]));
}

/// Neither the number of threads nor a second run changes a bit.
#[test]
fn threads() {
    let (x, row) = (numbers(&[301, 520], 1, 1.0), numbers(&[520], 2, 1.0));
    let (heads, table) = (x.reshape((301, 4, 130)).unwrap().transpose(0, 1).unwrap(), numbers(&[301, 65], 3, 1.0));
    let w = numbers(&[700, 520], 4, 1.0).to_dtype(DType::BF16).unwrap();
    let (kernel, frames) = (numbers(&[30, 17, 2, 3, 3], 5, 1.0), numbers(&[3, 17, 40, 52], 6, 1.0));
    let channels = row.narrow(0, 0, 17).unwrap();
    let all = || -> Result<Vec<Tensor>> {
        Ok(vec![
            kernels::gelu(&x)?,
            kernels::silu(&x)?,
            kernels::softmax_last_dim(&x)?,
            kernels::layer_norm(&x, &row, &row, 1e-6)?,
            kernels::rms_norm(&x, &row, 1e-6)?,
            kernels::residual(&x, &x)?,
            kernels::gated_residual(&x, &x, &row)?,
            kernels::rotate_pairs(&heads, &table, &table)?,
            kernels::attention(&heads, &heads, &heads, 0.1, None, Precision::F32)?,
            kernels::attention(&heads, &heads, &heads, 0.1, None, Precision::Bf16)?,
            kernels::linear(&x, &dense(&w)?, None, Activation::None, Precision::Bf16)?,
            kernels::linear(&x, &dense(&w)?, None, Activation::None, Precision::F32)?,
            kernels::channel_rms_norm(&frames, &channels, Activation::Silu)?,
            kernels::group_norm(&frames, &channels, &channels, 17, 1e-6, Activation::Silu)?,
            Convolution::new(&kernel, None, Edge::Zeros, Resize::Same, Precision::F32)?.forward(&frames, None, None)?,
            Convolution::new(&kernel, None, Edge::Zeros, Resize::Doubled, Precision::Bf16)?
                .forward(&frames, None, None)?,
        ])
    };
    for level in Level::available() {
        let run = |threads: usize| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let outputs = pool.install(|| level.scope(all)).unwrap();
            let bits =
                |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
            outputs.iter().map(bits).collect()
        };
        let one = run(1);
        assert!(one == run(3) && one == run(1), "{}", level.name());
    }
}

#[test]
fn extreme_values() {
    let x =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, 88.7, -88.0, -103.0, 1e10];
    let x = Tensor::new(&x, &Device::Cpu).unwrap();
    close(|| kernels::gelu(&x), 1e-6).unwrap();
    close(|| kernels::silu(&x), 1e-6).unwrap();
    close(|| kernels::softmax_last_dim(&x.narrow(0, 3, 9)?), 1e-6).unwrap();
    close(|| kernels::softmax_last_dim(&x), 1e-6).unwrap();
}

#[test]
fn nothing_in_nothing_out() {
    let empty = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(kernels::gelu(&empty(&[0, 4])).unwrap().dims(), [0, 4]);
    assert_eq!(kernels::softmax_last_dim(&empty(&[4, 0])).unwrap().dims(), [4, 0]);
    let mixed =
        kernels::attention(&empty(&[2, 3, 4]), &empty(&[2, 0, 4]), &empty(&[2, 0, 4]), 1.0, None, Precision::F32)
            .unwrap();
    let (scale, none) = (empty(&[3]), Activation::None);
    for shape in [[0, 3, 2, 2], [1, 3, 0, 2]] {
        assert_eq!(kernels::channel_rms_norm(&empty(&shape), &scale, none).unwrap().dims(), shape);
        assert_eq!(kernels::group_norm(&empty(&shape), &scale, &scale, 3, 1e-6, none).unwrap().dims(), shape);
        let conv = Convolution::new(&empty(&[2, 3, 1, 3, 3]), None, Edge::Zeros, Resize::Same, Precision::F32).unwrap();
        assert_eq!(conv.forward(&empty(&shape), None, None).unwrap().dims(), [shape[0], 2, shape[2], shape[3]]);
    }
    let conv = Convolution::new(&empty(&[2, 3, 2, 3, 3]), None, Edge::Zeros, Resize::Same, Precision::F32).unwrap();
    assert!(conv.forward(&empty(&[1, 4, 2, 2]), None, None).is_err());
    assert!(conv.forward(&empty(&[1, 3, 2, 2]), Some(&empty(&[2, 3, 2, 2])), None).is_err());
    assert!(conv.forward(&empty(&[1, 3, 2, 2]), None, Some(&empty(&[1, 3, 2, 2]))).is_err());
    assert!(Convolution::new(&empty(&[2, 3, 1, 2, 2]), None, Edge::Zeros, Resize::Same, Precision::F32).is_err());
    assert!(kernels::group_norm(&empty(&[1, 3, 1, 1]), &scale, &scale, 2, 1e-6, none).is_err());
    assert_eq!(mixed.to_vec2::<f32>().unwrap(), [[0.0; 8]; 3]);
    let bias = numbers(&[3], 1, 1.0);
    for precision in [Precision::F32, Precision::Bf16] {
        let linear = |x: &[usize], w: &[usize], bias: Option<&Tensor>| {
            kernels::linear(&empty(x), &dense(&empty(w)).unwrap(), bias, Activation::None, precision)
        };
        assert_eq!(linear(&[0, 5], &[3, 5], None).unwrap().dims(), [0, 3]);
        assert_eq!(linear(&[2, 5], &[0, 5], None).unwrap().dims(), [2, 0]);
        let rows = linear(&[2, 0], &[3, 0], Some(&bias)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows, [bias.to_vec1::<f32>().unwrap(), bias.to_vec1().unwrap()]);
        assert!(linear(&[2, 5], &[3, 6], None).is_err() && linear(&[2, 5], &[4, 5], Some(&bias)).is_err());
    }
    assert!(
        kernels::attention(&empty(&[2, 3, 4]), &empty(&[2, 5, 4]), &empty(&[2, 6, 4]), 1.0, None, Precision::F32)
            .is_err()
    );
}

/// The errors of a product and of attention against f64: those of sums in f32, and of rounding both sides to bf16.
#[test]
fn errors_are_those_of_the_format() {
    let (n, inputs, outputs) = (37, 1536, 65);
    let (x, w) = (numbers(&[n, inputs], 1, 1.0), numbers(&[outputs, inputs], 2, 1.0));
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let off = |found: &Tensor, exact: &Tensor| {
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        norm(&(wide(found) - exact).unwrap()) / norm(exact)
    };
    let product = wide(&x).matmul(&wide(&w).t().unwrap()).unwrap();
    let heads = x.reshape((n, 12, 128)).unwrap().transpose(0, 1).unwrap();
    let exact = kernels::attention(&wide(&heads), &wide(&heads), &wide(&heads), 0.3, None, Precision::F32).unwrap();
    for level in Level::available() {
        for (precision, of_product, of_attention) in [(Precision::F32, 2e-6, 2e-6), (Precision::Bf16, 3e-3, 5e-3)] {
            let found =
                level.scope(|| kernels::linear(&x, &dense(&w).unwrap(), None, Activation::None, precision)).unwrap();
            let found = off(&found, &product);
            assert!(found < of_product, "{} {precision:?}: {found:.1e}", level.name());
            let found = level.scope(|| kernels::attention(&heads, &heads, &heads, 0.3, None, precision)).unwrap();
            let found = off(&found, &exact);
            assert!(found < of_attention, "{} {precision:?}: {found:.1e}", level.name());
        }
    }
}

/// Of as many inputs and taps as the widest layers have: products of transformed numbers are as exact as those of
/// pixels.
#[test]
fn convolution_is_exact() {
    let (inputs, outputs, side) = (384, 4, 10);
    let (weight, x) = (numbers(&[outputs, inputs, 3, 3, 3], 1, 1.0), numbers(&[3, inputs, side, side], 2, 1.0));
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (weights, pixels) = (values(&weight), values(&x));
    let exact = |output: usize, row: usize, column: usize| -> f64 {
        let mut sum = 0.0;
        for (k, plane) in pixels.chunks(side * side).enumerate() {
            let weights = &weights[((output * inputs + k % inputs) * 3 + k / inputs) * 9..][..9];
            for (dy, dx) in (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx))) {
                sum += f64::from(weights[3 * dy + dx]) * f64::from(plane[(row + dy - 1) * side + column + dx - 1]);
            }
        }
        sum
    };
    for level in Level::available() {
        for (precision, most) in [(Precision::F32, 2e-6), (Precision::Bf16, 3e-3)] {
            let conv = || {
                Convolution::new(&weight, None, Edge::Zeros, Resize::Same, precision)?.forward(&x, None, None)?.get(2)
            };
            let found = values(&level.scope(conv).unwrap());
            let (mut error, mut size) = (0.0, 0.0);
            for (at, found) in found.iter().enumerate() {
                let (output, row, column) = (at / (side * side), at / side % side, at % side);
                if (1..side - 1).contains(&row) && (1..side - 1).contains(&column) {
                    let exact = exact(output, row, column);
                    error += (f64::from(*found) - exact).powi(2);
                    size += exact.powi(2);
                }
            }
            let relative = (error / size).sqrt();
            assert!(relative < most, "{} {precision:?}: {relative:e}", level.name());
        }
    }
}

/// Tensors that the kernels are not for are computed by candle.
#[test]
fn other_types() {
    let x = numbers(&[2, 5, 6], 1, 1.0).to_dtype(DType::F64).unwrap();
    let narrow = |x: Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let x32 = x.to_dtype(DType::F32).unwrap();
    let (row, row32) = (x.get(0).unwrap().get(0).unwrap(), x32.get(0).unwrap().get(0).unwrap());
    let half = |x: &Tensor| x.get(0).unwrap().narrow(1, 0, 3).unwrap();
    let (half, half32) = (half(&x), half(&x32));
    let (frames, channels) = (numbers(&[2, 4, 6, 8], 2, 1.0), numbers(&[4], 3, 1.0));
    let wide = (frames.to_dtype(DType::F64).unwrap(), channels.to_dtype(DType::F64).unwrap());
    let pictures = |f: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| (f(&wide.0, &wide.1), f(&frames, &channels));
    let pairs = [
        (kernels::gelu(&x), kernels::gelu(&x32)),
        (kernels::silu(&x), kernels::silu(&x32)),
        (kernels::softmax_last_dim(&x), kernels::softmax_last_dim(&x32)),
        (kernels::layer_norm(&x, &row, &row, 1e-6), kernels::layer_norm(&x32, &row32, &row32, 1e-6)),
        (
            kernels::modulated_layer_norm(&x, &row, &row, 1e-6),
            kernels::modulated_layer_norm(&x32, &row32, &row32, 1e-6),
        ),
        (kernels::rms_norm(&x, &row, 1e-6), kernels::rms_norm(&x32, &row32, 1e-6)),
        (kernels::residual(&x, &x), kernels::residual(&x32, &x32)),
        (kernels::gated_residual(&x, &x, &row), kernels::gated_residual(&x32, &x32, &row32)),
        (kernels::rotate_pairs(&x, &half, &half), kernels::rotate_pairs(&x32, &half32, &half32)),
        (
            kernels::attention(&x, &x, &x, 0.5, None, Precision::F32),
            kernels::attention(&x32, &x32, &x32, 0.5, None, Precision::F32),
        ),
        pictures(&|x, scale| kernels::channel_rms_norm(x, scale, Activation::Silu)),
        pictures(&|x, scale| kernels::group_norm(x, scale, scale, 2, 1e-6, Activation::Silu)),
    ];
    let convolutions = [
        (3, Edge::Zeros, Resize::Same),
        (3, Edge::Repeated, Resize::Doubled),
        (3, Edge::Zeros, Resize::Halved),
        (1, Edge::Repeated, Resize::Same),
        (5, Edge::Zeros, Resize::Doubled),
        (1, Edge::Zeros, Resize::Halved),
    ];
    let convolutions = convolutions.map(|(size, edge, resize)| {
        let weight = numbers(&[4, 4, 3, size, size], 3, 1.0);
        pictures(&|x, bias| {
            let conv = Convolution::new(&weight.to_dtype(x.dtype())?, Some(bias), edge, resize, Precision::F32)?;
            let y = conv.forward(x, Some(&x.narrow(0, 0, 1)?), None)?;
            conv.forward(x, None, Some(&y))
        })
    });
    for (wide, ours) in pairs.into_iter().chain(convolutions) {
        for (wide, ours) in narrow(wide.unwrap()).into_iter().zip(narrow(ours.unwrap())) {
            assert!((wide - ours).abs() < 1e-5, "{wide} {ours}");
        }
    }
}

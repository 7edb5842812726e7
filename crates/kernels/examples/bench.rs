//! Medians of every kernel at every level of the machine, taken in turn so that they meet the same neighbours.
//!
//! `cargo run --release -p navicache-kernels --example bench [rounds]`

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use navicache_kernels::{self as kernels, Activation, Convolution, Edge, HugePages, Level, Precision, Resize, dense};

#[global_allocator]
static MEMORY: HugePages = HugePages;

type Case<'a> = (&'a str, Box<dyn Fn() -> Result<Tensor> + 'a>);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(5);
    let only = arguments.next().unwrap_or_default();
    let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);

    let wide = random(&[1560, 8960])?;
    let bytes = 8.0 * wide.elem_count() as f64;
    let copy: Case = ("candle, a copy", Box::new(|| wide.copy()));
    if "gelu".contains(&only) {
        let theirs: Case = ("candle", Box::new(|| wide.gelu()));
        report("gelu 1560 x 8960", (bytes, "GB/s"), rounds, vec![copy, theirs], &|| kernels::gelu(&wide))?;
    }
    if "silu".contains(&only) {
        let theirs: Case = ("candle", Box::new(|| candle_nn::ops::silu(&wide)));
        report("silu 1560 x 8960", (bytes, "GB/s"), rounds, vec![theirs], &|| kernels::silu(&wide))?;
    }
    if "softmax".contains(&only) {
        let theirs: Case = ("candle", Box::new(|| candle_nn::ops::softmax_last_dim(&wide)));
        report("softmax 1560 x 8960", (bytes, "GB/s"), rounds, vec![theirs], &|| kernels::softmax_last_dim(&wide))?;
    }
    if "norm".contains(&only) {
        let (x, row) = (random(&[1560, 1536])?, random(&[1536])?);
        let bytes = 8.0 * x.elem_count() as f64;
        let theirs: Case = ("candle", Box::new(|| candle_nn::ops::layer_norm(&x, &(&row + 1.0)?, &row, 1e-6)));
        let ours = || kernels::modulated_layer_norm(&x, &row, &row, 1e-6);
        report("modulated layer norm 1560 x 1536", (bytes, "GB/s"), 10 * rounds, vec![theirs], &ours)?;
        let theirs: Case = ("candle", Box::new(|| candle_nn::ops::rms_norm(&x, &row, 1e-6)));
        let ours = || kernels::rms_norm(&x, &row, 1e-6);
        report("rms norm 1560 x 1536", (bytes, "GB/s"), 10 * rounds, vec![theirs], &ours)?;
        let theirs: Case = ("candle", Box::new(|| &x + x.broadcast_mul(&row)?));
        let ours = || kernels::gated_residual(&x, &x, &row);
        report("gated residual 1560 x 1536", (1.5 * bytes, "GB/s"), 10 * rounds, vec![theirs], &ours)?;
        let heads = x.reshape((1560, 12, 128))?.transpose(0, 1)?;
        let table = random(&[1560, 64])?;
        let theirs = || candle_nn::rotary_emb::rope_i(&heads.contiguous()?.unsqueeze(0)?, &table, &table);
        let ours = || kernels::rotate_pairs(&heads, &table, &table);
        let theirs: Case = ("candle", Box::new(theirs));
        report("rotary embedding 12 x 1560 x 128", (bytes, "GB/s"), 10 * rounds, vec![theirs], &ours)?;
    }
    if "linear".contains(&only) {
        for (n, inputs, outputs) in [(1560, 1536, 8960), (1560, 8960, 1536), (1560, 1536, 1536)] {
            let (x, w) = (random(&[n, inputs])?, random(&[outputs, inputs])?);
            let (narrow, bias) = (w.to_dtype(DType::BF16)?, random(&[outputs])?);
            let theirs: Case = ("candle, f32", Box::new(|| x.matmul(&w.t()?)?.broadcast_add(&bias)));
            let widened = || x.matmul(&narrow.to_dtype(DType::F32)?.t()?)?.broadcast_add(&bias);
            let widened: Case = ("candle, widened", Box::new(widened));
            let flops = 2.0 * (n * inputs * outputs) as f64;
            let name = format!("linear, f32, {n} x {inputs} -> {outputs}");
            let ours = || kernels::linear(&x, &dense(&w)?, Some(&bias), Activation::None, Precision::F32);
            report(&name, (flops, "GFLOP/s"), rounds, vec![theirs], &ours)?;
            let name = format!("linear, bf16, {n} x {inputs} -> {outputs}");
            let ours = || kernels::linear(&x, &dense(&narrow)?, Some(&bias), Activation::None, Precision::Bf16);
            report(&name, (flops, "GFLOP/s"), rounds, vec![widened], &ours)?;
        }
    }
    for (n, m) in [(1560, 1560), (1560, 512), (4096, 4096)] {
        if !"attention".contains(&only) {
            continue;
        }
        let (q, k, v) = (random(&[12, n, 128])?, random(&[12, m, 128])?, random(&[12, m, 128])?);
        let flops = 4.0 * (12 * n * m * 128) as f64;
        let matmuls = || -> Result<Tensor> {
            let scores = (&q * 0.088)?.matmul(&k.t()?)?;
            candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?.transpose(0, 1)?.reshape((n, 12 * 128))
        };
        let theirs: Case = ("candle, two products and softmax", Box::new(matmuls));
        let name = format!("attention 12 x {n} x {m} x 128");
        let ours = || kernels::attention(&q, &k, &v, 0.088, None, Precision::F32);
        report(&format!("{name}, f32"), (flops, "GFLOP/s"), rounds, vec![theirs], &ours)?;
        let ours = || kernels::attention(&q, &k, &v, 0.088, None, Precision::Bf16);
        report(&format!("{name}, bf16"), (flops, "GFLOP/s"), rounds, vec![], &ours)?;
    }
    // Layers of Wan2.1's decoder: inputs, outputs, time, size, frames, height and width, and how they follow from the
    // input's.
    for (inputs, outputs, time, size, frames, side, resize) in [
        (384, 384, 3, 3, 1, 32, Resize::Same),
        (384, 384, 3, 3, 2, 64, Resize::Same),
        (192, 192, 3, 3, 4, 128, Resize::Same),
        (96, 96, 3, 3, 4, 256, Resize::Same),
        (96, 3, 3, 3, 4, 256, Resize::Same),
        (192, 96, 1, 3, 4, 128, Resize::Doubled),
        (96, 96, 1, 3, 4, 256, Resize::Halved),
        (384, 192, 1, 1, 4, 128, Resize::Same),
    ] {
        let name = format!(
            "convolution {inputs} -> {outputs}, {time} x {size} x {size}, {frames} x {side} x {side}, {resize:?}"
        );
        if !name.contains(&only) {
            continue;
        }
        let (weight, bias) = (random(&[outputs, inputs, time, size, size])?, random(&[outputs])?);
        let (x, before) = (random(&[frames, inputs, side, side])?, random(&[time - 1, inputs, side, side])?);
        let scale = match resize {
            Resize::Same => 1.0,
            Resize::Doubled => 4.0,
            Resize::Halved => 0.25,
        };
        let flops = 2.0 * scale * (weight.elem_count() * frames * side * side) as f64;
        for precision in [Precision::F32, Precision::Bf16] {
            let conv = || Convolution::new(&weight, Some(&bias), Edge::Zeros, resize, precision);
            let convs: Vec<_> =
                Level::available().iter().map(|level| Ok((*level, level.scope(conv)?))).collect::<Result<_>>()?;
            let ours = || {
                let conv = convs.iter().find(|(level, _)| *level == Level::current()).map(|(_, conv)| conv);
                conv.map_or_else(|| x.copy(), |conv| conv.forward(&x, Some(&before), None))
            };
            report(&format!("{name}, {precision:?}"), (flops, "GFLOP/s"), rounds, vec![], &ours)?;
        }
    }
    Ok(())
}

/// Prints medians in milliseconds and how much work a second that is.
fn report<'a>(
    name: &str,
    (work, unit): (f64, &str),
    rounds: usize,
    mut cases: Vec<Case<'a>>,
    ours: &'a dyn Fn() -> Result<Tensor>,
) -> Result<()> {
    let slow = ["attention", "linear", "convolution"].iter().any(|slow| name.contains(slow));
    let levels = Level::available().iter().filter(|level| !slow || **level != Level::PLAIN);
    for level in levels {
        cases.push((level.name(), Box::new(move || level.scope(ours))));
    }
    let mut times = vec![Vec::new(); cases.len()];
    for round in 0..=rounds {
        for ((_, run), times) in cases.iter().zip(&mut times) {
            let start = Instant::now();
            black_box(run()?);
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    println!("{name}");
    for ((case, _), times) in cases.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        println!("  {case:34} {:8.2} ms  {:7.1} {unit} (best {:.2} ms)", median * 1e3, work / median / 1e9, best * 1e3);
    }
    Ok(())
}

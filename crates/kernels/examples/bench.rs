//! Medians of every kernel at every level of the machine, taken in turn so that they meet the same neighbours.
//!
//! `cargo run --release -p navicache-kernels --example bench [rounds]`

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use navicache_kernels::{self as kernels, Level};

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
        report(&name, (flops, "GFLOP/s"), rounds, vec![theirs], &|| kernels::attention(&q, &k, &v, 0.088, None))?;
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
    let levels = Level::available().iter().filter(|level| **level != Level::PLAIN || !name.contains("attention"));
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

//! How something is timed: one run before those that count, their median, and the most that the machine can do.

use candle_core::{DType, Device, Tensor};
use navicache_engine::models::{Precision, peak_flops, seconds_on, wait_for};
use navicache_engine::{noise, threads};
use serde::Serialize;

use crate::error::{Error, Result};

/// What a benchmark found.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// What was timed, in words.
    pub what: String,
    /// Its tokens, where it has any.
    pub tokens: Option<usize>,
    /// The same as frames, rows and columns, where they have a place.
    pub grid: Option<[usize; 3]>,
    /// Format of the weights.
    pub dtype: String,
    /// Threads.
    pub threads: usize,
    /// Median of the runs.
    pub median_seconds: f64,
    /// Every run, in order; one before them does not count. On a GPU by its own events.
    pub runs: Vec<f64>,
    /// Floating point operations, where they are counted: those of matrix products.
    pub flop: Option<f64>,
    /// Of these a second, in units of 10^9.
    pub gflops: Option<f64>,
    /// The most there can be, measured right before and after: on the CPU of the instruction that multiplies numbers of
    /// this format, on registers alone; elsewhere of a large matrix product.
    pub peak_gflops: Option<f64>,
    /// One over the other.
    pub share_of_peak: Option<f64>,
}

/// What is timed, and how often.
pub(super) struct Run {
    pub tokens: usize,
    pub dtype: DType,
    pub precision: Precision,
    pub runs: usize,
    pub device: Device,
}

/// Tokens as frames of rows and columns, no frame more than twice as wide as it is high: as many, or a few more where
/// they do not divide so.
pub(super) fn grid(tokens: usize) -> [usize; 3] {
    const MOST_FRAMES: usize = 32;
    let of = |tokens: usize, frames: usize| {
        let places = tokens / frames;
        let rows = (1..=places.isqrt()).rev().find(|rows| places.is_multiple_of(*rows))?;
        (frames * places == tokens && places / rows <= 2 * rows).then_some([frames, rows, places / rows])
    };
    let grids = (tokens.max(1)..).flat_map(|tokens| (1..=MOST_FRAMES).filter_map(move |frames| of(tokens, frames)));
    grids.into_iter().next().unwrap_or([1, 1, tokens.max(1)])
}

/// Runs it once, then several times; a tensor of the result is read back each time, so that nothing is still running.
pub(super) fn timed(
    what: &str,
    flop: Option<f64>,
    options: &Run,
    mut run: impl FnMut() -> Result<Tensor>,
) -> Result<Timing> {
    wait_for(&run()?)?;
    let before = flop.map(|_| peak_gflops(options)).transpose()?;
    let mut runs = Vec::with_capacity(options.runs);
    for _ in 0..options.runs.max(1) {
        runs.push(seconds_on(&options.device, || Ok::<_, Error>(wait_for(&run()?)?))?.1);
    }
    let after = flop.map(|_| peak_gflops(options)).transpose()?;
    let median_seconds = median(&runs);
    let gflops = flop.map(|flop| flop / median_seconds / 1e9);
    let peak_gflops = before.zip(after).map(|(before, after)| before.max(after));
    Ok(Timing {
        what: what.to_string(),
        tokens: Some(options.tokens),
        grid: None,
        dtype: options.dtype.as_str().to_string(),
        threads: threads(),
        median_seconds,
        runs,
        flop,
        gflops,
        peak_gflops,
        share_of_peak: gflops.zip(peak_gflops).map(|(gflops, peak)| gflops / peak),
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn peak_gflops(options: &Run) -> Result<f64> {
    const SIDE: usize = 4096;
    let Run { dtype, device, precision, .. } = options;
    if device.is_cpu() {
        return Ok(peak_flops(*precision) / 1e9);
    }
    let x = random(4, &[SIDE, SIDE], device)?.to_dtype(*dtype)?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        best = best.min(seconds_on(device, || x.matmul(&x))?.1);
    }
    Ok(2.0 * (SIDE * SIDE * SIDE) as f64 / best / 1e9)
}

pub(super) fn random(seed: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let values = noise::randn(seed, shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}

//! What the machine could do if nothing had to be fetched.

use std::hint::black_box;
use std::time::Instant;

use crate::level::{Kernel, Level};
use crate::linear::Precision;
use crate::simd::Simd;

/// The most floating point operations a second, all threads together, at the current level: multiplications and additions on numbers that
/// are in registers already. Measured anew at every call, in a few hundredths of a second. Of bf16, the instruction for pairs does twice as many.
pub fn peak_flops(precision: Precision) -> f64 {
    const ROUNDS: usize = 1 << 20;
    const TRIALS: usize = 4;
    let level = Level::current();
    let factor = if precision == Precision::Bf16 && level.pair_tile().is_some() { 2.0 } else { 1.0 };
    let trial = |_: usize| {
        let clock = Instant::now();
        let operations: usize = rayon::broadcast(|_| level.run(Chains { rounds: ROUNDS })).into_iter().sum();
        operations as f64 / clock.elapsed().as_secs_f64()
    };
    factor * (0..TRIALS).map(trial).fold(0.0, f64::max)
}

/// Sums that do not wait for each other; gives the number of operations.
struct Chains {
    rounds: usize,
}

/// Enough to fill two pipelines of four stages, few enough for 16 registers.
const CHAINS: usize = 12;

impl Kernel for Chains {
    type Output = usize;

    fn plain(self) -> usize {
        let (x, mut sums) = (black_box(1e-9f32), [0f32; CHAINS]);
        for _ in 0..self.rounds {
            sums.iter_mut().for_each(|sum| *sum += x * x);
        }
        black_box(sums);
        2 * CHAINS * self.rounds
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) -> usize {
        let (x, mut sums) = (simd.splat(black_box(1e-9)), [simd.splat(0.0); CHAINS]);
        for _ in 0..self.rounds {
            sums.iter_mut().for_each(|sum| *sum = simd.fma(x, x, *sum));
        }
        black_box(sums.map(|sum| simd.sum(sum)));
        2 * CHAINS * S::LANES * self.rounds
    }
}

//! What the machine could do if nothing had to be fetched.

use std::hint::black_box;
use std::time::Instant;

use crate::level::{Kernel, Level};
use crate::panel::Pair;
use crate::precision::Precision;
use crate::tile::{F32, PairTile, Products, Tiles, WithProducts};

/// The most floating point operations a second, all threads together, of the instruction that multiplies numbers of
/// this precision at the current level, on numbers that are in registers already. Measured anew at every call, in a few
/// hundredths of a second.
pub fn peak_flops(precision: Precision) -> f64 {
    /// About as long for every instruction.
    const ROUNDS: usize = 1 << 20;
    const TRIALS: usize = 4;
    let level = Level::current();
    let trial = |_: usize| {
        let clock = Instant::now();
        let operations: usize = rayon::broadcast(|_| operations(level, precision, ROUNDS)).into_iter().sum();
        operations as f64 / clock.elapsed().as_secs_f64()
    };
    (0..TRIALS).map(trial).fold(0.0, f64::max)
}

/// Some of them on this thread; gives how many.
pub(crate) fn operations(level: Level, precision: Precision, rounds: usize) -> usize {
    let pairs = level.pair_tile().filter(|_| precision == Precision::Bf16);
    level.run(Chains { rounds, pairs })
}

/// Sums that do not wait for each other; gives the number of operations.
struct Chains {
    rounds: usize,
    /// Of these, instead of f32.
    pairs: Option<PairTile>,
}

impl Kernel for Chains {
    type Output = usize;

    fn plain(self) -> usize {
        const CHAINS: usize = 12;
        let (x, mut sums) = (black_box(1e-9f32), [0f32; CHAINS]);
        for _ in 0..self.rounds {
            sums.iter_mut().for_each(|sum| *sum += x * x);
        }
        black_box(sums);
        2 * CHAINS * self.rounds
    }

    #[inline(always)]
    fn fast<S: Tiles>(self, simd: S) -> usize {
        match self.pairs {
            Some(tile) => tile.enter(self),
            None => F32(simd).chains(self.rounds),
        }
    }
}

impl WithProducts for Chains {
    type Output = usize;

    #[inline(always)]
    fn run<P: Products<Number = Pair>>(self, mut products: P) -> usize {
        products.chains(self.rounds)
    }
}

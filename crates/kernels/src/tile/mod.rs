//! The core of a matrix product.
//!
//! A tile of sums, some rows by some columns, stays in registers while the depth passes by. Each step loads one number
//! a row and one vector for each group of columns and multiplies all with all: the products need far fewer loads than
//! there are products. The columns come from a *panel*: the tile's columns packed row after row, so that they are read
//! in order.
//!
//! Each sum is one chain over the depth, so it is the same number whatever tile it falls into.

#![allow(unsafe_code)]

pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
mod pairs;

use std::hint::black_box;

pub(crate) use pairs::{PairTile, WithProducts, bf16_bits, pair};

use crate::panel::Number;
use crate::simd::Simd;
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{Avx2, Avx512};

/// Columns of every tile of pairs.
pub(crate) const PAIR_COLUMNS: usize = 32;

/// The most rows of any tile.
pub(crate) const MAX_ROWS: usize = 32;

/// Steps of the depth that a panel is fetched ahead of.
const AHEAD: usize = 16;

/// What a tile takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Units {
    /// Rows.
    pub(crate) rows: usize,
    /// Numbers of the depth; its length is a multiple of them.
    pub(crate) step: usize,
}

/// How far apart the numbers of a product's left side are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apart {
    /// From row to row.
    pub(crate) row: usize,
    /// From one step of the depth to the next; a row's numbers of one step are neighbours.
    pub(crate) step: usize,
}

/// What the products of a tile are added to.
#[derive(Clone, Copy)]
pub(crate) enum Onto<'a> {
    /// Nothing: what was there is overwritten.
    Nothing,
    /// The sums that are there.
    Sums,
    /// The sums that are there, times a factor for each row.
    Scaled(&'a [f32]),
}

/// An instruction set's tile of f32: as many sums as its registers have room for.
pub(crate) trait Tiles: Simd {
    /// Rows of a tile.
    const TILE_ROWS: usize;
    /// Columns of a tile.
    const TILE_COLUMNS: usize;

    /// `c = onto + a b` on one tile, see [`Products::tile`].
    fn tile(self, a: &[f32], apart: Apart, panel: &[f32], onto: Onto, c: &mut [f32], width: usize);

    /// The same with `a` packed as the panel is. // (depth, rows)
    #[inline(always)]
    fn packed_tile(self, a: &[f32], panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
        self.tile(a, Apart { row: 1, step: Self::TILE_ROWS }, panel, onto, c, width);
    }
}

/// The tile of an instruction set: so many rows by so many vectors.
macro_rules! tiles {
    ($simd:ty, $rows:literal, $vectors:literal) => {
        impl Tiles for $simd {
            const TILE_ROWS: usize = $rows;
            const TILE_COLUMNS: usize = $vectors * Self::LANES;

            #[inline(always)]
            fn tile(self, a: &[f32], apart: Apart, panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
                tile::<Self, $rows, $vectors>(self, a, apart, panel, onto, c, width);
            }
        }
    };
}

// 12 sums, 2 columns and a row's number make 15 of 16 registers.
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, 6, 2);
// 24 sums, 2 columns and a row's number make 27 of 32 registers.
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, 12, 2);
// 24 sums, 4 columns and a row's number make 29 of 32 registers.
#[cfg(target_arch = "aarch64")]
tiles!(Neon, 6, 4);

/// What is multiplied in a tile.
pub(crate) trait Products {
    /// A number of either side: one f32, or two bf16.
    type Number: Number;
    /// Rows of a tile, and numbers of its depth.
    const UNITS: Units;
    /// Columns of a tile.
    const COLUMNS: usize;

    /// Where numbers are in rows that lie one after the other.
    fn rows(stride: usize) -> Apart {
        Apart { row: stride, step: Self::UNITS.step }
    }

    /// Where they are in the rows of a tile as it reads them best.
    fn packed(depth: usize) -> Apart {
        Self::rows(depth)
    }

    /// `c = onto + a b` on one tile.
    ///
    /// * `a` - rows and steps so far `apart`
    /// * `panel` - (depth, columns)
    /// * `c` - rows, `width` numbers apart
    fn tile(
        &mut self,
        a: &[Self::Number],
        apart: Apart,
        panel: &[Self::Number],
        onto: Onto,
        c: &mut [f32],
        width: usize,
    );

    /// The same with the depth in pieces of one length, which begin at places of their own on the left side.
    #[inline(always)]
    fn tile_of_pieces(
        &mut self,
        a: &[Self::Number],
        pieces: &[usize],
        apart: Apart,
        panel: &[Self::Number],
        c: &mut [f32],
        width: usize,
    ) {
        let len = panel.len() / pieces.len();
        for (i, (start, panel)) in pieces.iter().zip(panel.chunks_exact(len)).enumerate() {
            let onto = if i == 0 { Onto::Nothing } else { Onto::Sums };
            self.tile(&a[*start..], apart, panel, onto, c, width);
        }
    }

    /// Products of numbers that are there already, so many times over, for the most that the instruction can do. Gives
    /// the number of operations.
    fn chains(&mut self, rounds: usize) -> usize;
}

/// Products in f32.
#[derive(Clone, Copy)]
pub(crate) struct F32<S>(pub S);

impl<S: Tiles> Products for F32<S> {
    type Number = f32;
    const UNITS: Units = Units { rows: S::TILE_ROWS, step: 1 };
    const COLUMNS: usize = S::TILE_COLUMNS;

    #[inline(always)]
    fn tile(&mut self, a: &[f32], apart: Apart, panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
        self.0.tile(a, apart, panel, onto, c, width);
    }

    #[inline(always)]
    fn chains(&mut self, rounds: usize) -> usize {
        /// Enough to fill two pipelines of four stages, few enough for 16 registers.
        const CHAINS: usize = 12;
        let (x, mut sums) = (self.0.splat(black_box(1e-9)), [self.0.splat(0.0); CHAINS]);
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = self.0.fma(x, x, *sum));
        }
        black_box(sums.map(|sum| self.0.sum(sum)));
        2 * CHAINS * S::LANES * rounds
    }
}

/// `c = onto + a b` for `R` rows and `C` vectors of columns, see [`Products::tile`].
#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    Apart { row, step }: Apart,
    panel: &[f32],
    onto: Onto,
    c: &mut [f32],
    width: usize,
) {
    let columns = C * S::LANES;
    let depth = panel.len() / columns;
    assert!(depth > 0 && a.len() > (R - 1) * row + (depth - 1) * step);
    let mut sums: [[_; C]; R] = started(simd, onto, c, width);
    for (k, b) in panel.chunks_exact(columns).enumerate() {
        for i in 0..C {
            simd.fetch(b, AHEAD * columns + i * S::LANES);
        }
        let mut vectors = [simd.splat(0.0); C];
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(&b[i * S::LANES..]);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `r < R`, so that this is at most `(R - 1) * row + (depth - 1) * step`, less than
            // the length, as asserted above.
            let number = simd.splat(unsafe { *a.get_unchecked(r * row + k * step) });
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = simd.fma(number, vector, *sum);
            }
        }
    }
    finished(simd, &sums, c, width);
}

/// What the sums of a tile begin with.
#[inline(always)]
fn started<S: Simd, const R: usize, const C: usize>(simd: S, onto: Onto, c: &[f32], width: usize) -> [[S::V; C]; R] {
    let mut sums = [[simd.splat(0.0); C]; R];
    if !matches!(onto, Onto::Nothing) {
        for (r, sums) in sums.iter_mut().enumerate() {
            let row = c[r * width..][..C * S::LANES].chunks_exact(S::LANES);
            sums.iter_mut().zip(row).for_each(|(sum, c)| *sum = simd.load(c));
        }
    }
    if let Onto::Scaled(factors) = onto {
        for (sums, factor) in sums.iter_mut().zip(factors) {
            let factor = simd.splat(*factor);
            sums.iter_mut().for_each(|sum| *sum = simd.mul(factor, *sum));
        }
    }
    sums
}

/// Writes the sums of a tile.
#[inline(always)]
fn finished<S: Simd, const R: usize, const C: usize>(simd: S, sums: &[[S::V; C]; R], c: &mut [f32], width: usize) {
    for (r, sums) in sums.iter().enumerate() {
        let row = c[r * width..][..C * S::LANES].chunks_exact_mut(S::LANES);
        sums.iter().zip(row).for_each(|(sum, c)| simd.store(*sum, c));
    }
}

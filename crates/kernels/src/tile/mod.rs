//! The core of a matrix product.
//!
//! A tile of sums, some rows by some columns, stays in registers while the depth passes by. Each step loads one number a row and
//! one vector for each group of columns and multiplies all with all: the products need far fewer loads than there are products. The
//! columns come from a *panel*: the tile's columns packed row after row, so that they are read in order.
//!
//! Each sum is one chain over the depth, so it is the same number whatever tile it falls into.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
mod pairs;

#[cfg(target_arch = "x86_64")]
use pairs::PAIR_ROWS;
pub(crate) use pairs::{PAIR_COLUMNS, PairTile};

use crate::panel::Number;
use crate::simd::Simd;
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{Avx2, Avx512};

/// The most rows of any tile.
pub(crate) const MAX_ROWS: usize = 12;

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
    fn tile(self, a: &[f32], stride: usize, panel: &[f32], onto: Onto, c: &mut [f32], width: usize);
    /// The same with `a` packed as the panel is. // (depth, rows)
    fn packed_tile(self, a: &[f32], panel: &[f32], onto: Onto, c: &mut [f32], width: usize);
}

/// The tile of an instruction set: so many rows by so many vectors.
macro_rules! tiles {
    ($simd:ty, $rows:literal, $vectors:literal) => {
        impl Tiles for $simd {
            const TILE_ROWS: usize = $rows;
            const TILE_COLUMNS: usize = $vectors * Self::LANES;

            #[inline(always)]
            fn tile(self, a: &[f32], stride: usize, panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
                tile::<Self, $rows, $vectors>(self, a, stride, panel, onto, c, width);
            }

            #[inline(always)]
            fn packed_tile(self, a: &[f32], panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
                packed_tile::<Self, $rows, $vectors>(self, a, panel, onto, c, width);
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
pub(crate) trait Products: Copy + Send + Sync {
    /// A number of either side: one f32, or two bf16.
    type Number: Number;
    /// Rows of a tile.
    const ROWS: usize;
    /// Columns of a tile.
    const COLUMNS: usize;

    /// `c = onto + a b` on one tile.
    ///
    /// * `a` - rows, `stride` numbers apart
    /// * `panel` - (depth, columns)
    /// * `c` - rows, `width` numbers apart
    fn tile(self, a: &[Self::Number], stride: usize, panel: &[Self::Number], onto: Onto, c: &mut [f32], width: usize);
}

/// Products in f32.
#[derive(Clone, Copy)]
pub(crate) struct F32<S>(pub S);

impl<S: Tiles> Products for F32<S> {
    type Number = f32;
    const ROWS: usize = S::TILE_ROWS;
    const COLUMNS: usize = S::TILE_COLUMNS;

    #[inline(always)]
    fn tile(self, a: &[f32], stride: usize, panel: &[f32], onto: Onto, c: &mut [f32], width: usize) {
        self.0.tile(a, stride, panel, onto, c, width);
    }
}

/// `c = onto + a b` for `R` rows and `C` vectors of columns, see [`Products::tile`].
#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    stride: usize,
    panel: &[f32],
    onto: Onto,
    c: &mut [f32],
    width: usize,
) {
    assert!(panel.len() <= stride * C * S::LANES);
    strided_tile::<S, R, C>(simd, a, [stride, 1], panel, onto, c, width);
}

/// The same with `a` packed as the panel is. // (depth, `R`)
#[inline(always)]
fn packed_tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    panel: &[f32],
    onto: Onto,
    c: &mut [f32],
    width: usize,
) {
    strided_tile::<S, R, C>(simd, a, [1, R], panel, onto, c, width);
}

/// The same with rows of `a`, and numbers of a row, any distance apart.
#[inline(always)]
fn strided_tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    a: &[f32],
    [row, step]: [usize; 2],
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
        let mut vectors = [simd.splat(0.0); C];
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(&b[i * S::LANES..]);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `r < R`, so that this is at most `(R - 1) * row + (depth - 1) * step`, less than the length, as
            // asserted above.
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

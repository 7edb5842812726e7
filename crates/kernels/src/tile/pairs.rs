//! Products of pairs of bf16.

#[cfg(target_arch = "x86_64")]
use super::avx512_bf16::Avx512Bf16;
use super::{Onto, Products};
use crate::panel::Pair;

/// Rows of a tile of [`PairTile`].
pub(crate) const PAIR_ROWS: usize = 12;

/// Columns of a tile of [`PairTile`].
pub(crate) const PAIR_COLUMNS: usize = 32;

/// Instructions for products of pairs of bf16; like [`crate::simd::Simd`], the proof that the machine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairTile {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
}

impl PairTile {
    /// Rounds a row to bf16, in pairs.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(crate) fn round(self, row: &[f32], to: &mut [Pair]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairTile::Avx512(tile) => tile.round(row, to),
        }
    }
}

impl Products for PairTile {
    type Number = Pair;
    const ROWS: usize = PAIR_ROWS;
    const COLUMNS: usize = PAIR_COLUMNS;

    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn tile(self, a: &[Pair], stride: usize, panel: &[Pair], onto: Onto, c: &mut [f32], width: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairTile::Avx512(tile) => tile.pairs(a, stride, panel, onto, c, width),
        }
    }
}

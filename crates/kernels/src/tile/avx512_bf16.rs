//! Products of pairs of bf16 by AVX-512 BF16.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Onto, PAIR_COLUMNS, PAIR_ROWS, finished, started};
use crate::panel::Pair;
use crate::simd::Simd;
use crate::simd::x86::Avx512;

/// The machine has AVX-512 BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(pub(crate) Avx512);

impl Avx512Bf16 {
    /// If it has.
    pub(crate) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Avx512Bf16)
    }

    /// Rounds to bf16, see [`super::PairTile::round`].
    pub(crate) fn round(self, row: &[f32], to: &mut [Pair]) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { round_pairs(self.0, row, to) }
    }

    /// `c = onto + a b` for pairs of bf16 and sums in f32, see [`super::PairTile`].
    pub(crate) fn pairs(self, a: &[Pair], stride: usize, panel: &[Pair], onto: Onto, c: &mut [f32], width: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { tile_of_pairs(self.0, a, stride, panel, onto, c, width) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn round_pairs(simd: Avx512, row: &[f32], to: &mut [Pair]) {
    const PAIRS: usize = Avx512::LANES / 2;
    assert!(to.len() == row.len().div_ceil(2));
    let narrow = |x: __m512| -> [Pair; PAIRS] {
        // SAFETY: both are 256 bits, of which all are numbers.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(x)) }
    };
    for (x, to) in row.chunks(Avx512::LANES).zip(to.chunks_mut(PAIRS)) {
        to.copy_from_slice(&narrow(simd.load_part(x, 0.0))[..to.len()]);
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_of_pairs(simd: Avx512, a: &[Pair], stride: usize, panel: &[Pair], onto: Onto, c: &mut [f32], width: usize) {
    const VECTORS: usize = PAIR_COLUMNS / Avx512::LANES;
    let depth = panel.len() / PAIR_COLUMNS;
    assert!(depth <= stride && a.len() >= (PAIR_ROWS - 1) * stride + depth);
    let mut sums: [[_; VECTORS]; PAIR_ROWS] = started(simd, onto, c, width);
    for (k, pairs) in panel.chunks_exact(PAIR_COLUMNS).enumerate() {
        // SAFETY: `pairs` are as many as are read, and all bits are a vector.
        let vectors: [__m512bh; VECTORS] = unsafe { pairs.as_ptr().cast::<[__m512bh; VECTORS]>().read_unaligned() };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `r < PAIR_ROWS`, so that this is at most `(PAIR_ROWS - 1) * stride + depth - 1`, less than the
            // length, as asserted above; all bits are a vector.
            let pair: __m512bh = unsafe {
                let pair = *a.get_unchecked(r * stride + k);
                std::mem::transmute(_mm512_set1_epi32(pair.cast_signed()))
            };
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = _mm512_dpbf16_ps(*sum, pair, vector);
            }
        }
    }
    finished(simd, &sums, c, width);
}

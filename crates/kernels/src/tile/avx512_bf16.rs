//! Products of pairs of bf16 by AVX-512 BF16.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::hint::black_box;

use super::{Apart, Onto, PAIR_COLUMNS, Products, Units, finished, started};
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
    #[inline(always)]
    pub(crate) fn round(self, row: &[f32], to: &mut [Pair], step: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { round_pairs(self.0, row, to, step) }
    }
}

/// Rows of a tile: 24 sums, 2 columns and a row's pair make 27 of 32 registers.
const ROWS: usize = 12;

impl Products for Avx512Bf16 {
    type Number = Pair;
    const UNITS: Units = Units { rows: ROWS, step: 1 };
    const COLUMNS: usize = PAIR_COLUMNS;

    #[inline(always)]
    fn tile(&mut self, a: &[Pair], apart: Apart, panel: &[Pair], onto: Onto, c: &mut [f32], width: usize) {
        // SAFETY: `self` is the proof that the machine has the instructions.
        unsafe { tile_of_pairs(self.0, a, apart, panel, onto, c, width) }
    }

    #[inline(always)]
    fn chains(&mut self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { chains(self.0, rounds) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn chains(simd: Avx512, rounds: usize) -> usize {
    const CHAINS: usize = 12;
    // SAFETY: all bits are a vector.
    let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3080_3080))) };
    let mut sums = [simd.splat(0.0); CHAINS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
    }
    black_box(sums.map(|sum| simd.sum(sum)));
    4 * CHAINS * Avx512::LANES * rounds
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn round_pairs(simd: Avx512, row: &[f32], to: &mut [Pair], step: usize) {
    const HALF: usize = Avx512::LANES / 2;
    let narrow = |x: __m512| -> [Pair; HALF] {
        // SAFETY: both are 256 bits, of which all are numbers.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(x)) }
    };
    let (whole, rest) = row.as_chunks::<{ 2 * Avx512::LANES }>();
    for (group, row) in whole.iter().enumerate() {
        let to: &mut [Pair] = &mut to[group * step..][..2 * HALF];
        let both = _mm512_cvtne2ps_pbh(simd.load(&row[Avx512::LANES..]), simd.load(row));
        // SAFETY: there is room for 16 pairs, which are 512 bits.
        unsafe { to.as_mut_ptr().cast::<__m512bh>().write_unaligned(both) };
    }
    if !rest.is_empty() {
        let end = to.len().min(whole.len() * step + 2 * HALF);
        for (i, to) in to[whole.len() * step..end].chunks_mut(HALF).enumerate() {
            let x = simd.load_part(rest.get(i * Avx512::LANES..).unwrap_or_default(), 0.0);
            to.copy_from_slice(&narrow(x)[..to.len()]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn tile_of_pairs(
    simd: Avx512,
    a: &[Pair],
    Apart { row, step }: Apart,
    panel: &[Pair],
    onto: Onto,
    c: &mut [f32],
    width: usize,
) {
    const VECTORS: usize = PAIR_COLUMNS / Avx512::LANES;
    let depth = panel.len() / PAIR_COLUMNS;
    assert!(depth > 0 && a.len() > (ROWS - 1) * row + (depth - 1) * step);
    let mut sums: [[_; VECTORS]; ROWS] = started(simd, onto, c, width);
    for (k, pairs) in panel.chunks_exact(PAIR_COLUMNS).enumerate() {
        // SAFETY: `pairs` are as many as are read, and all bits are a vector.
        let vectors: [__m512bh; VECTORS] = unsafe { pairs.as_ptr().cast::<[__m512bh; VECTORS]>().read_unaligned() };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `r < ROWS`, so that this is at most `(ROWS - 1) * row + (depth - 1) * step`, less
            // than the length, as asserted above; all bits are a vector.
            let pair: __m512bh = unsafe {
                let pair = *a.get_unchecked(r * row + k * step);
                std::mem::transmute(_mm512_set1_epi32(pair.cast_signed()))
            };
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = _mm512_dpbf16_ps(*sum, pair, vector);
            }
        }
    }
    finished(simd, &sums, c, width);
}

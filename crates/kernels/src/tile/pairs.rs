//! Products of pairs of bf16: which instructions a machine has for them.

#[cfg(target_arch = "x86_64")]
use super::amx::Amx;
use super::amx::{self, Emulated};
#[cfg(target_arch = "x86_64")]
use super::avx512_bf16::Avx512Bf16;
use super::{Products, Units};
use crate::panel::{Number, Pair};

/// Instructions for products of pairs of bf16; like [`crate::simd::Simd`], the proof that the machine has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairTile {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// AMX in loops, for tests.
    Emulated,
}

/// Something to be done with products of pairs, of whichever kind.
pub(crate) trait WithProducts {
    /// What it gives.
    type Output;

    /// To be marked `inline(always)`, as everything it calls.
    fn run<P: Products<Number = Pair>>(self, products: P) -> Self::Output;
}

impl PairTile {
    /// Does it. What the instructions need is set up before, and put back after.
    #[inline(always)]
    pub(crate) fn enter<W: WithProducts>(self, with: W) -> W::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairTile::Avx512(tile) => with.run(tile),
            #[cfg(target_arch = "x86_64")]
            PairTile::Amx(amx) => with.run(amx::Tiles(amx.begin())),
            PairTile::Emulated => with.run(amx::Tiles(Emulated::new())),
        }
    }

    /// Rows, and pairs of depth, that a tile takes at a time.
    pub(crate) fn units(self) -> Units {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairTile::Avx512(_) => Avx512Bf16::UNITS,
            #[cfg(target_arch = "x86_64")]
            PairTile::Amx(_) => amx::UNITS,
            PairTile::Emulated => amx::UNITS,
        }
    }

    /// Rounds a row to bf16, in pairs. Each 16 of them are `step` from those before; what is left of the last 16 is
    /// zeros as far as `to` has room.
    pub(crate) fn round(self, row: &[f32], to: &mut [Pair], step: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            PairTile::Avx512(tile) => tile.round(row, to, step),
            #[cfg(target_arch = "x86_64")]
            PairTile::Amx(amx) => amx.bf16().round(row, to, step),
            PairTile::Emulated => {
                for (group, row) in row.chunks(2 * amx::SIDE).enumerate() {
                    let end = to.len().min(group * step + amx::SIDE);
                    let to = &mut to[group * step..end];
                    for (to, x) in to.iter_mut().zip(row.chunks(2).chain(std::iter::repeat(&[][..]))) {
                        *to = pair(x.first().copied().unwrap_or(0.0), x.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
        }
    }

    /// Packs the rows of a tile as it reads them best, filled up with zeros. // (at most a tile's rows, width) ->
    /// (rows, depth)
    pub(crate) fn pack(self, rows: &[f32], width: usize, to: &mut [Pair]) {
        let Units { rows: count, step } = self.units();
        let depth = Pair::row(width).next_multiple_of(step);
        let (row, apart) = if step == 1 { (depth, amx::SIDE) } else { (step, count * step) };
        for (i, from) in rows.chunks_exact(width).enumerate() {
            self.round(from, &mut to[i * row..], apart);
        }
    }
}

/// Both rounded to bf16, the first in the lower half.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> Pair {
    u32::from(bf16_bits(first)) | u32::from(bf16_bits(second)) << 16
}

/// The nearest bf16, ties to even, without a branch so that it becomes vectors; NaN stays one.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }) as u16
}

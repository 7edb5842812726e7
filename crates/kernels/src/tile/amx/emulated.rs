//! Tiles as loops over their bytes: as the manual says what the instructions do (Intel's Software Developer's Manual,
//! TILELOADD, TILESTORED and TDPBF16PS), bit for bit.

use super::{SIDE, Unit, span};
use crate::panel::Pair;

/// Bytes of a row.
const ROW: usize = 4 * SIDE;

/// Eight tiles of this value's own.
pub(crate) struct Emulated {
    tiles: Box<[[[u8; ROW]; SIDE]; 8]>,
}

impl Emulated {
    /// With NaN in all of them: nothing may be used before something was put there.
    pub(crate) fn new() -> Self {
        Emulated { tiles: Box::new([[[0xff; ROW]; SIDE]; 8]) }
    }

    fn load<const T: u8>(&mut self, bytes: impl Fn(usize) -> [u8; 4], stride: usize) {
        for (r, row) in self.tiles[usize::from(T)].iter_mut().enumerate() {
            for (i, number) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *number = bytes(r * stride + i);
            }
        }
    }
}

impl Unit for Emulated {
    fn zero<const T: u8>(&mut self) {
        self.tiles[usize::from(T)] = [[0; ROW]; SIDE];
    }

    fn load<const T: u8>(&mut self, from: &[Pair], stride: usize) {
        assert!(from.len() >= span(stride));
        Emulated::load::<T>(self, |i| from[i].to_le_bytes(), stride);
    }

    fn load_sums<const T: u8>(&mut self, from: &[f32], stride: usize) {
        assert!(from.len() >= span(stride));
        Emulated::load::<T>(self, |i| from[i].to_le_bytes(), stride);
    }

    fn store_sums<const T: u8>(&mut self, to: &mut [f32], stride: usize) {
        assert!(to.len() >= span(stride));
        for (r, row) in self.tiles[usize::from(T)].iter().enumerate() {
            for (i, number) in row.as_chunks::<4>().0.iter().enumerate() {
                to[r * stride + i] = f32::from_le_bytes(*number);
            }
        }
    }

    /// Of every pair the first product to one sum and the second to another, then both together to what was there.
    /// Numbers below the normal range count as zero.
    fn add_products<const C: u8, const A: u8, const B: u8>(&mut self) {
        let number = |bytes: &[u8]| flushed(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16));
        for r in 0..SIDE {
            for i in 0..SIDE {
                let mut sums = [0f32; 2];
                for k in 0..SIDE {
                    let (a, b) = (&self.tiles[usize::from(A)][r], &self.tiles[usize::from(B)][k]);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let (a, b) = (number(&a[4 * k + 2 * j..]), number(&b[4 * i + 2 * j..]));
                        *sum = flushed(a.mul_add(b, *sum));
                    }
                }
                let place: &mut [u8] = &mut self.tiles[usize::from(C)][r][4 * i..4 * i + 4];
                let before = flushed(f32::from_le_bytes([place[0], place[1], place[2], place[3]]));
                place.copy_from_slice(&flushed(before + flushed(sums[0] + sums[1])).to_le_bytes());
            }
        }
    }
}

/// Zero of its sign below the normal range.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::super::{Onto, Products};
    use super::super::{Amx, Tiles, UNITS};
    use super::*;
    use crate::tile::Apart;

    /// The machine's tiles give the same bits, of ordinary numbers, of tiny ones and of no numbers.
    #[test]
    fn the_machine_does_the_same() {
        let Some(amx) = Amx::detect() else { return };
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        for round in 0..200 {
            let (steps, row) = (1 + round % 3, 16 + round % 5);
            let apart = Apart { row, step: UNITS.rows * row };
            let mut pairs = |count: usize| -> Vec<Pair> {
                let masked = |x: u32| match round % 4 {
                    0 => x & 0x80ff_80ff | 0x3f00_3f00, // about one
                    1 => x & 0x9fff_9fff,               // tiny ones too
                    2 => x & 0xbfff_bfff,
                    _ => x,
                };
                (0..count).map(|_| masked(next())).collect()
            };
            let (a, panel) = (pairs(steps * UNITS.rows * row), pairs(steps * SIDE * 32));
            let before: Vec<f32> = pairs(32 * 40).into_iter().map(f32::from_bits).collect();
            let (mut ours, mut theirs) = (before.clone(), before);
            let factors: Vec<f32> = (0..32).map(|i| i as f32 / 4.0).collect();
            let onto = [Onto::Nothing, Onto::Sums, Onto::Scaled(&factors)][round % 3];
            Tiles(Emulated::new()).tile(&a, apart, &panel, onto, &mut ours, 40);
            Tiles(amx.begin()).tile(&a, apart, &panel, onto, &mut theirs, 40);
            for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
                assert!(
                    same,
                    "round {round}, {i}: {ours:e} ({:x}) instead of {theirs:e} ({:x})",
                    ours.to_bits(),
                    theirs.to_bits()
                );
            }
        }
    }
}

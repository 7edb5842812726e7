//! Products of pairs of bf16 by AMX: eight tiles of 16 rows of 64 bytes.
//!
//! A product of tiles takes 16 pairs of the depth: `c += a b` with `a` (16 rows, 16 pairs) and `b` (16 pairs, 16
//! columns). Four tiles hold sums, so that each of two tiles of either side is used twice. What a unit does with its
//! tiles is a trait: the machine's own, and loops over the tile's bytes, which check everything around them on any
//! machine.

mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;

pub(crate) use emulated::Emulated;
#[cfg(target_arch = "x86_64")]
pub(crate) use hardware::Amx;

use super::{Apart, Onto, PAIR_COLUMNS, Products, Units};
use crate::panel::Pair;

/// Rows of a tile, and numbers of 32 bits in each.
pub(crate) const SIDE: usize = 16;

/// What [`Tiles`] take at a time.
pub(crate) const UNITS: Units = Units { rows: 2 * SIDE, step: SIDE };

/// Eight tiles, by number.
pub(crate) trait Unit {
    /// Zeros.
    fn zero<const T: u8>(&mut self);
    /// 16 rows of 16 pairs, `stride` pairs apart.
    fn load<const T: u8>(&mut self, from: &[Pair], stride: usize);
    /// 16 rows of 16 sums, `stride` sums apart.
    fn load_sums<const T: u8>(&mut self, from: &[f32], stride: usize);
    /// The other way.
    fn store_sums<const T: u8>(&mut self, to: &mut [f32], stride: usize);
    /// `c += a b`
    fn add_products<const C: u8, const A: u8, const B: u8>(&mut self);
}

/// The numbers that a tile spans in a slice.
const fn span(stride: usize) -> usize {
    (SIDE - 1) * stride + SIDE
}

/// Two by two tiles of sums.
pub(crate) struct Tiles<U>(pub U);

impl<U: Unit> Tiles<U> {
    #[inline(always)]
    fn zero(&mut self) {
        let unit = &mut self.0;
        unit.zero::<0>();
        unit.zero::<1>();
        unit.zero::<2>();
        unit.zero::<3>();
    }

    /// Adds products of all the panel's depth.
    #[inline(always)]
    fn add(&mut self, a: &[Pair], apart: Apart, panel: &[Pair]) {
        let unit = &mut self.0;
        assert!(panel.len().is_multiple_of(SIDE * PAIR_COLUMNS));
        for (k, b) in panel.chunks_exact(SIDE * PAIR_COLUMNS).enumerate() {
            let a = &a[k * apart.step..];
            unit.load::<6>(b, PAIR_COLUMNS);
            unit.load::<4>(a, apart.row);
            unit.add_products::<0, 4, 6>();
            unit.load::<7>(&b[SIDE..], PAIR_COLUMNS);
            unit.add_products::<1, 4, 7>();
            unit.load::<5>(&a[SIDE * apart.row..], apart.row);
            unit.add_products::<2, 5, 6>();
            unit.add_products::<3, 5, 7>();
        }
    }

    #[inline(always)]
    fn store(&mut self, c: &mut [f32], width: usize) {
        let (unit, below) = (&mut self.0, SIDE * width);
        unit.store_sums::<0>(c, width);
        unit.store_sums::<1>(&mut c[SIDE..], width);
        unit.store_sums::<2>(&mut c[below..], width);
        unit.store_sums::<3>(&mut c[below + SIDE..], width);
    }
}

impl<U: Unit> Products for Tiles<U> {
    type Number = Pair;
    const UNITS: Units = UNITS;
    const COLUMNS: usize = PAIR_COLUMNS;

    fn packed(_depth: usize) -> Apart {
        Apart { row: SIDE, step: UNITS.rows * SIDE }
    }

    #[inline(always)]
    fn tile(&mut self, a: &[Pair], apart: Apart, panel: &[Pair], onto: Onto, c: &mut [f32], width: usize) {
        let (unit, below) = (&mut self.0, SIDE * width);
        if let Onto::Scaled(factors) = onto {
            for (row, factor) in c.chunks_mut(width).zip(&factors[..UNITS.rows]).filter(|(_, factor)| **factor != 1.0) {
                row[..PAIR_COLUMNS].iter_mut().for_each(|sum| *sum *= factor);
            }
        }
        if matches!(onto, Onto::Nothing) {
            self.zero();
        } else {
            unit.load_sums::<0>(c, width);
            unit.load_sums::<1>(&c[SIDE..], width);
            unit.load_sums::<2>(&c[below..], width);
            unit.load_sums::<3>(&c[below + SIDE..], width);
        }
        self.add(a, apart, panel);
        self.store(c, width);
    }

    /// Sums stay in their tiles from piece to piece.
    #[inline(always)]
    fn tile_of_pieces(
        &mut self,
        a: &[Pair],
        pieces: &[usize],
        apart: Apart,
        panel: &[Pair],
        c: &mut [f32],
        width: usize,
    ) {
        self.zero();
        for (start, panel) in pieces.iter().zip(panel.chunks_exact(panel.len() / pieces.len())) {
            self.add(&a[*start..], apart, panel);
        }
        self.store(c, width);
    }

    #[inline(always)]
    fn chains(&mut self, rounds: usize) -> usize {
        let unit = &mut self.0;
        let zeros = [0; span(SIDE)];
        unit.load::<4>(&zeros, SIDE);
        unit.load::<6>(&zeros, SIDE);
        for _ in 0..rounds / SIDE {
            unit.add_products::<0, 4, 6>();
            unit.add_products::<1, 4, 6>();
            unit.add_products::<2, 4, 6>();
            unit.add_products::<3, 4, 6>();
        }
        rounds / SIDE * 4 * 2 * SIDE * SIDE * 2 * SIDE
    }
}

//! F(2x2, 3x3): four outputs of a 3x3 kernel with 16 multiplications instead of 36 (Lavin and Gray 2016, arXiv
//! 1509.09308).
//!
//! Along an axis, two outputs of a kernel g depend on four pixels d. At four *points*,
//!
//! - the pixels are `[d0 - d2, d1 + d2, d2 - d1, d1 - d3]`,
//! - the kernel is `[g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]`,
//! - and of their products m, the outputs are `[m0 + m1 + m2, m1 - m2 - m3]`.
//!
//! Along both axes there are 4 x 4 points. Their products are summed over inputs and taps before they become outputs,
//! so that transforming takes little time beside multiplying. Each pass does one of the points down, with all points
//! across, so that what it gathers and its sums have room in the second cache.
//!
//! The pixels of a picture that is doubled have `d1 = d2`: the third point is zero and left out, and 3 x 3 are left.

use super::band::{self, Band, Panels, Sums, aligned};
use crate::tile::Tiles;

/// Of the points, the one that a doubled picture has no use for.
const UNUSED: usize = 2;

/// The points down, in the order of the passes. The first has a part in both outputs.
const PASSES: [usize; 4] = [1, 0, UNUSED, 3];

/// The points down of all passes, where there are `across` points across.
fn passes(across: usize) -> impl Iterator<Item = usize> {
    PASSES.into_iter().filter(move |&point| across == 4 || point != UNUSED)
}

/// A 3x3 kernel at `across * across` points. // (passes, across), then zeros
pub(super) fn kernel(weight: &[f32], across: usize) -> [f32; 16] {
    let axis = |[a, b, c]: [f64; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let g = |i: usize| f64::from(weight[i]);
    let columns: [[f64; 4]; 3] = std::array::from_fn(|dx| axis([g(dx), g(3 + dx), g(6 + dx)]));
    let mut points = [0.0; 16];
    for (i, point) in passes(across).enumerate() {
        let row = axis([columns[0][point], columns[1][point], columns[2][point]]);
        let used = (0..4).filter(|&j| across == 4 || j != UNUSED);
        used.enumerate().for_each(|(j, place)| points[i * across + j] = row[place] as f32);
    }
    points
}

/// A point down, by the order of the passes, with `N` points across.
pub(super) struct Pass<const N: usize>(pub(super) usize);

impl<const N: usize> band::Pass for Pass<N> {
    const PRODUCTS: usize = N;

    /// The band's tiles of two by two outputs.
    #[inline(always)]
    fn columns(&self, band: &Band) -> usize {
        band.rows.div_ceil(2) * band.output[1].div_ceil(2)
    }

    /// Depth: (taps, inputs).
    #[inline(always)]
    fn gather<S: Tiles>(&self, simd: S, band: &Band, panels: &mut Panels, lines: &mut Vec<f32>) {
        let (shape, [h, w]) = (band.clip.shape, band.clip.size);
        let (down, across) = (band.rows.div_ceil(2), band.output[1].div_ceil(2));
        let lines = aligned(lines, w + 2 * across.next_multiple_of(S::LANES) + 2 * S::LANES);
        let (zeros, line) = lines.split_at_mut(w);
        zeros.fill(0.0);
        // The pixels at the point: of four rows, the first of these and so many times the second.
        let (rows, sign) = match passes(N).nth(self.0) {
            Some(0) => ([0, 2], -1.0),
            Some(1) => ([1, 2], 1.0),
            Some(UNUSED) => ([2, 1], -1.0),
            _ => ([1, 3], -1.0),
        };
        // What is left of the first column, and right of the last.
        let ends = [shape.source(0, 0, w), shape.source(band.output[1] - 1, 2, w)];
        for (k, plane) in band.taps.iter().flat_map(|frame| frame.chunks_exact(h * w)).enumerate() {
            for tile_row in 0..down {
                let mut pair = [&*zeros; 2];
                for (row, place) in pair.iter_mut().zip(rows) {
                    if let Some(source) = shape.source(band.first_row + 2 * tile_row, place, h) {
                        *row = &plane[source * w..][..w];
                    }
                }
                let [a, b] = pair;
                for x in (0..w).step_by(S::LANES) {
                    let (a, b) = (simd.load_part(&a[x..], 0.0), simd.load_part(&b[x..], 0.0));
                    simd.store_part(simd.fma(simd.splat(sign), b, a), &mut line[1 + x..=w]);
                }
                for (place, end) in [(0, ends[0]), (w + 1, ends[1])] {
                    line[place] = end.map_or(0.0, |x| a[x] + sign * b[x]);
                }
                for x in (0..across).step_by(S::LANES) {
                    let ((a, b), (c, d)) = if N == 3 {
                        let b = simd.load(&line[x + 1..]);
                        ((simd.load(&line[x..]), b), (b, simd.load(&line[x + 2..])))
                    } else {
                        let (now, next) = (&line[2 * x..], &line[2 * x + 2..]);
                        let left = simd.unzip(simd.load(now), simd.load(&now[S::LANES..]));
                        (left, simd.unzip(simd.load(next), simd.load(&next[S::LANES..])))
                    };
                    let at = tile_row * across + x;
                    panels.put(simd, 0, k, at, simd.sub(a, c));
                    panels.put(simd, 1, k, at, simd.add(b, c));
                    if N == 4 {
                        panels.put(simd, UNUSED, k, at, simd.sub(c, b));
                    }
                    panels.put(simd, N - 1, k, at, simd.sub(b, d));
                }
            }
        }
    }

    /// Adds what a pass has a part in to the outputs; the first one, to bias and residual.
    #[inline(always)]
    fn scatter<S: Tiles>(&self, simd: S, band: &Band, sums: &Sums, y: &mut [&mut [f32]]) {
        let width = band.output[1];
        let across = width.div_ceil(2);
        // How often the point is in the rows of a tile.
        let parts = match passes(N).nth(self.0) {
            Some(0) => [1.0, 0.0],
            Some(1) => [1.0, 1.0],
            Some(UNUSED) => [1.0, -1.0],
            _ => [0.0, -1.0],
        };
        for (output, y) in y.iter_mut().enumerate() {
            let (bias, residual) = (simd.splat(band.bias(output)), band.residual(output));
            let mut products: [&[f32]; N] = [&[]; N];
            for (j, product) in products.iter_mut().enumerate() {
                *product = sums.row(j, output);
            }
            for tile_row in 0..band.rows.div_ceil(2) {
                for x in (0..across).step_by(S::LANES) {
                    let mut m = [simd.splat(0.0); N];
                    for (m, product) in m.iter_mut().zip(products) {
                        *m = simd.load(&product[tile_row * across + x..]);
                    }
                    let (mut even, mut odd) = (simd.add(m[0], m[1]), simd.sub(m[1], m[N - 1]));
                    if N == 4 {
                        (even, odd) = (simd.add(even, m[UNUSED]), simd.sub(odd, m[UNUSED]));
                    }
                    let (left, right) = simd.zip(even, odd);
                    for (i, part) in parts.into_iter().enumerate().take(band.rows - 2 * tile_row) {
                        if part == 0.0 {
                            continue;
                        }
                        let (row, part) = ((2 * tile_row + i) * width, simd.splat(part));
                        for (column, v) in [(2 * x, left), (2 * x + S::LANES, right)] {
                            if column >= width {
                                continue;
                            }
                            let y = &mut y[row + column..row + width];
                            let before = match (self.0, residual) {
                                (0, Some(residual)) => {
                                    simd.add(bias, simd.load_part(&residual[row + column..row + width], 0.0))
                                }
                                (0, None) => bias,
                                _ => simd.load_part(y, 0.0),
                            };
                            simd.store_part(simd.fma(part, v, before), y);
                        }
                    }
                }
            }
        }
    }
}

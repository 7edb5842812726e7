//! F(2x2, 3x3): four outputs of a 3x3 kernel with 16 multiplications instead of 36 (Lavin and Gray 2016, arXiv 1509.09308).
//!
//! Along an axis, two outputs of a kernel g depend on four pixels d. With
//!
//! - of the pixels: `[d0 - d2, d1 + d2, d2 - d1, d1 - d3]`,
//! - of the kernel: `[g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]`,
//! - and their products m: `[m0 + m1 + m2, m1 - m2 - m3]`,
//!
//! the last are the outputs; along both axes there are 16 products. They are summed over inputs and taps before the last step, so that the
//! steps for pixels and outputs are few beside the products. Pixels of a picture that was doubled have `d1 = d2`: what has to do
//! with the third product is zero and left out, and 9 are left.

use super::{Band, Panels, Sums};
use crate::simd::Simd;

/// Of the four points along an axis, the one that a doubled picture has no use for.
const UNUSED: usize = 2;

/// How many tiles of two by two outputs a band has.
pub(super) fn tiles(band: &Band) -> usize {
    band.rows.div_ceil(2) * band.output[1].div_ceil(2)
}

/// A 3x3 kernel at all points, or at those of a doubled picture.
pub(super) fn kernel<'a>(weight: &[f32], points: &'a mut [f32]) -> &'a [f32] {
    let axis = |[a, b, c]: [f64; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let g = |i: usize| f64::from(weight[i]);
    let columns: [[f64; 4]; 3] = std::array::from_fn(|dx| axis([g(dx), g(3 + dx), g(6 + dx)]));
    let is_doubled = points.len() == 9;
    let mut points_left = points.iter_mut();
    for i in (0..4).filter(|&i| !is_doubled || i != UNUSED) {
        let row = axis([columns[0][i], columns[1][i], columns[2][i]]);
        for j in (0..4).filter(|&j| !is_doubled || j != UNUSED) {
            if let Some(point) = points_left.next() {
                *point = row[j] as f32;
            }
        }
    }
    points
}

/// Pixels at `N` points of an axis.
#[inline(always)]
fn pixels<S: Simd, const N: usize>(simd: S, [a, b, c, d]: [S::V; 4]) -> [S::V; N] {
    let points = [simd.sub(a, c), simd.add(b, c), simd.sub(c, b), simd.sub(b, d)];
    std::array::from_fn(|i| if N == 3 && i == UNUSED { points[3] } else { points[i] })
}

/// Two outputs of the products at `N` points of an axis.
#[inline(always)]
fn outputs<S: Simd, const N: usize>(simd: S, m: [S::V; N]) -> [S::V; 2] {
    let (sum, rest) = (simd.add(m[0], m[1]), simd.sub(m[1], m[N - 1]));
    if N == 3 { [sum, rest] } else { [simd.add(sum, m[UNUSED]), simd.sub(rest, m[UNUSED])] }
}

/// Depth: (taps, inputs); columns: the band's tiles; products: `N` points down by `N` across.
#[inline(always)]
pub(super) fn gather<S: Simd, const N: usize>(simd: S, band: &Band, panels: &mut Panels, lines: &mut Vec<f32>) {
    let (shape, [h, w]) = (band.clip.shape, band.clip.size);
    let (down, across) = (band.rows.div_ceil(2), band.output[1].div_ceil(2));
    let padded = across.next_multiple_of(S::LANES);
    // A line of pixels, and all lines that the band sees at the points of their axis.
    let line_len = 2 * padded + 2 * S::LANES;
    lines.clear();
    lines.resize(line_len + (2 * down + 2) * N * padded, 0.0);
    let (line, points) = lines.split_at_mut(line_len);
    for (k, plane) in band.taps.iter().flat_map(|frame| frame.chunks_exact(h * w)).enumerate() {
        for (i, points) in points.chunks_exact_mut(N * padded).enumerate() {
            let Some(row) = shape.source(band.first_row + i, 0, h) else {
                points.fill(0.0);
                continue;
            };
            read_line(simd, band, &plane[row * w..][..w], line);
            for x in (0..padded).step_by(S::LANES) {
                let pair = |at: usize| simd.unzip(simd.load(&line[at..]), simd.load(&line[at + S::LANES..]));
                let ((a, b), (c, d)) = (pair(2 * x), pair(2 * x + 2));
                for (j, point) in pixels::<S, N>(simd, [a, b, c, d]).into_iter().enumerate() {
                    simd.store(point, &mut points[j * padded + x..]);
                }
            }
        }
        for (y, points) in (0..down).map(|y| (y, &points[2 * y * N * padded..])) {
            for x in (0..across).step_by(S::LANES) {
                for j in 0..N {
                    let rows = std::array::from_fn(|i| simd.load(&points[(i * N + j) * padded + x..]));
                    for (i, point) in pixels::<S, N>(simd, rows).into_iter().enumerate() {
                        panels.put(simd, i * N + j, k, y * across + x, point);
                    }
                }
            }
        }
    }
}

/// A row as the kernel sees it, from the pixel left of the first output's on.
#[inline(always)]
fn read_line<S: Simd>(simd: S, band: &Band, row: &[f32], line: &mut [f32]) {
    let (shape, width) = (band.clip.shape, band.output[1]);
    if width == row.len() {
        line[1..=width].copy_from_slice(row);
    } else {
        for (x, part) in row.chunks(S::LANES).enumerate() {
            let v = simd.load_part(part, 0.0);
            let (left, right) = simd.zip(v, v);
            let twice = &mut line[1 + 2 * x * S::LANES..];
            simd.store(left, twice);
            simd.store(right, &mut twice[S::LANES..]);
        }
    }
    for (place, column) in [(0, shape.source(0, 0, row.len())), (width + 1, shape.source(width - 1, 2, row.len()))] {
        line[place] = column.map_or(0.0, |column| row[column]);
    }
}

/// Sums at all points, to outputs.
#[inline(always)]
pub(super) fn scatter<S: Simd, const N: usize>(simd: S, band: &Band, sums: &Sums, y: &mut [&mut [f32]]) {
    let width = band.output[1];
    let across = width.div_ceil(2);
    for (output, y) in y.iter_mut().enumerate() {
        let (bias, residual) = (simd.splat(band.bias(output)), band.residual(output));
        let products: [[&[f32]; N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| sums.row(i * N + j, output)));
        for tile_row in 0..band.rows.div_ceil(2) {
            for x in (0..across).step_by(S::LANES) {
                let at = tile_row * across + x;
                // Down each column of points, then across.
                let columns: [[S::V; 2]; N] = std::array::from_fn(|j| {
                    outputs::<S, N>(simd, std::array::from_fn(|i| simd.load(&products[i][j][at..])))
                });
                for i in 0..2.min(band.rows - 2 * tile_row) {
                    let [even, odd] = outputs::<S, N>(simd, std::array::from_fn(|j| columns[j][i]));
                    let (left, right) = simd.zip(even, odd);
                    let row = (2 * tile_row + i) * width;
                    for (column, v) in [(2 * x, left), (2 * x + S::LANES, right)] {
                        if column < width {
                            let mut v = simd.add(v, bias);
                            if let Some(residual) = residual {
                                v = simd.add(v, simd.load_part(&residual[row + column..row + width], 0.0));
                            }
                            simd.store_part(v, &mut y[row + column..row + width]);
                        }
                    }
                }
            }
        }
    }
}

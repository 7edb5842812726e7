//! Pixels as a kernel sees them: a number for each tap, input and place of the kernel, side by side for every output
//! pixel of a band.

use super::band::{self, Band, Panels, Sums};
use super::shape::Resize;
use crate::tile::Tiles;

/// The only pass.
pub(super) struct Pass;

impl band::Pass for Pass {
    const PRODUCTS: usize = 1;

    /// The band's pixels.
    #[inline(always)]
    fn columns(&self, band: &Band) -> usize {
        band.rows * band.output[1]
    }

    /// Depth: (taps, inputs, size, size).
    #[inline(always)]
    fn gather<S: Tiles>(&self, _: S, band: &Band, panels: &mut Panels, lines: &mut Vec<f32>) {
        let (shape, [h, w], width) = (band.clip.shape, band.clip.size, band.output[1]);
        lines.resize(band.rows * width, 0.0);
        let mut k = 0;
        for plane in band.taps.iter().flat_map(|frame| frame.chunks_exact(h * w)) {
            if shape.size == 1 && shape.resize == Resize::Same {
                spread::<S>(&plane[band.first_row * w..][..band.rows * w], panels, k);
                k += 1;
                continue;
            }
            for (dy, dx) in (0..shape.size).flat_map(|dy| (0..shape.size).map(move |dx| (dy, dx))) {
                for (i, line) in lines.chunks_exact_mut(width).enumerate() {
                    match shape.source(band.first_row + i, dy, h) {
                        Some(row) => look(band, &plane[row * w..][..w], dx, line),
                        None => line.fill(0.0),
                    }
                }
                spread::<S>(lines, panels, k);
                k += 1;
            }
        }
    }

    /// Sums are the outputs.
    #[inline(always)]
    fn scatter<S: Tiles>(&self, _: S, band: &Band, sums: &Sums, y: &mut [&mut [f32]]) {
        for (output, y) in y.iter_mut().enumerate() {
            let (sums, bias) = (sums.row(0, output), band.bias(output));
            match band.residual(output) {
                Some(residual) => {
                    for ((y, sum), residual) in y.iter_mut().zip(sums).zip(residual) {
                        *y = sum + bias + residual;
                    }
                }
                None => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum + bias),
            }
        }
    }
}

/// What a column of the kernel sees of a row.
#[inline(always)]
fn look(band: &Band, row: &[f32], dx: usize, line: &mut [f32]) {
    let shape = band.clip.shape;
    let mut done = 0;
    if shape.resize == Resize::Halved && dx < row.len() {
        for (to, from) in line.iter_mut().zip(row[dx..].iter().step_by(2)) {
            *to = *from;
            done += 1;
        }
    }
    for (column, to) in line.iter_mut().enumerate().skip(done) {
        *to = shape.source(column, dx, row.len()).map_or(0.0, |column| row[column]);
    }
}

/// A line of all columns to its depth in every panel.
#[inline(always)]
fn spread<S: Tiles>(line: &[f32], panels: &mut Panels, k: usize) {
    for (part, panel) in line.chunks(S::TILE_COLUMNS).zip(panels.numbers.chunks_exact_mut(panels.panel_len)) {
        panel[k * S::TILE_COLUMNS..][..part.len()].copy_from_slice(part);
    }
}

//! What a band of rows is computed from, and in what: the ground of both forms.

use super::shape::{Edge, Shape};
use crate::simd::MAX_LANES;
use crate::tile::Tiles;

/// Numbers in a line of the caches.
pub(super) const LINE: usize = 16;

/// A call: frames, and what is done with them.
#[derive(Clone, Copy)]
pub(super) struct Clip<'a> {
    pub(super) shape: Shape,
    /// Height and width of the input.
    pub(super) size: [usize; 2],
    /// How many frames are before those of the clip.
    pub(super) memory: usize,
    /// The frames before and those of the clip. // (n, in, h, w) each
    pub(super) frames: [&'a [f32]; 2],
    pub(super) bias: &'a [f32],     // (out), or empty
    pub(super) residual: &'a [f32], // as the output, or empty
}

/// A band to be computed: its frame and first row, and its rows of every output.
pub(super) type Rows<'y> = (usize, usize, Vec<&'y mut [f32]>);

impl<'a> Clip<'a> {
    /// Numbers of an output frame.
    pub(super) fn frame_len(&self) -> usize {
        let [height, width] = self.size.map(|length| self.shape.length(length));
        self.shape.outputs * height * width
    }

    /// Cuts what is written into bands of so many rows. // y: (frames, out, height, width), not empty
    pub(super) fn bands<'y>(&self, y: &'y mut [f32], rows: usize) -> Vec<Rows<'y>> {
        let [height, width] = self.size.map(|length| self.shape.length(length));
        let mut bands: Vec<Rows> = Vec::new();
        for (frame, y) in y.chunks_exact_mut(self.frame_len()).enumerate() {
            let first_band = bands.len();
            for (output, plane) in y.chunks_exact_mut(height * width).enumerate() {
                for (band, rows_of_plane) in plane.chunks_mut(rows * width).enumerate() {
                    if output == 0 {
                        bands.push((frame, band * rows, Vec::with_capacity(self.shape.outputs)));
                    }
                    bands[first_band + band].2.push(rows_of_plane);
                }
            }
        }
        bands
    }

    /// Where among all frames those are that the taps see at an output frame, oldest first, without those that would be
    /// zeros.
    pub(super) fn places(&self, frame: usize) -> Vec<usize> {
        let last = frame + self.memory;
        let places = (0..self.shape.time).map(|tap| (last + tap + 1).checked_sub(self.shape.time));
        match self.shape.edge {
            Edge::Zeros => places.flatten().collect(),
            Edge::Repeated => places.map(|place| place.unwrap_or(0)).collect(),
        }
    }

    /// The frame at a place. // (in, h, w)
    pub(super) fn frame(&self, place: usize) -> &'a [f32] {
        let len = self.shape.inputs * self.size[0] * self.size[1];
        let [before, x] = self.frames;
        match place.checked_sub(self.memory) {
            Some(frame) => &x[frame * len..][..len],
            None => &before[place * len..][..len],
        }
    }
}

/// Some rows of an output frame.
pub(super) struct Band<'a> {
    pub(super) clip: &'a Clip<'a>,
    /// The kernel as the form wants it.
    pub(super) packed: &'a [f32],
    pub(super) taps: &'a [&'a [f32]],
    /// Of those that see a frame.
    pub(super) first_tap: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Height and width of the output.
    pub(super) output: [usize; 2],
    /// Of the frame. // (out, height, width)
    pub(super) residual: Option<&'a [f32]>,
}

impl Band<'_> {
    pub(super) fn bias(&self, output: usize) -> f32 {
        self.clip.bias.get(output).copied().unwrap_or(0.0)
    }

    /// The residual's rows where the band is. // (rows, width)
    pub(super) fn residual(&self, output: usize) -> Option<&[f32]> {
        let [height, width] = self.output;
        self.residual.map(|residual| &residual[(output * height + self.first_row) * width..][..self.rows * width])
    }
}

/// What is gathered for the products of a pass.
pub(super) struct Panels<'a> {
    pub(super) numbers: &'a mut [f32], // (products, panels, depth, columns), and a line after each panel
    pub(super) panel_len: usize,
    pub(super) product_len: usize,
}

impl Panels<'_> {
    /// A vector to the columns of a product from `at` on, at a depth; what is beyond the last panel is dropped.
    #[inline(always)]
    pub(super) fn put<S: Tiles>(&mut self, simd: S, product: usize, k: usize, at: usize, v: S::V) {
        let (panel, column) = (at / S::TILE_COLUMNS, at % S::TILE_COLUMNS);
        let panels = &mut self.numbers[product * self.product_len..][..self.product_len];
        let start = panel * self.panel_len + k * S::TILE_COLUMNS;
        if column + S::LANES <= S::TILE_COLUMNS {
            return simd.store(v, &mut panels[start + column..]);
        }
        let (mut lanes, room) = ([0.0; MAX_LANES], S::TILE_COLUMNS - column);
        simd.store(v, &mut lanes);
        panels[start + column..start + S::TILE_COLUMNS].copy_from_slice(&lanes[..room]);
        if let Some(next) = panels.get_mut(start + self.panel_len..start + self.panel_len + S::LANES - room) {
            next.copy_from_slice(&lanes[room..S::LANES]);
        }
    }
}

/// Sums of the products of a pass.
pub(super) struct Sums<'a> {
    pub(super) numbers: &'a [f32], // (products, outputs and more, columns), and a line after each product
    pub(super) len: usize,
    pub(super) width: usize,
}

impl Sums<'_> {
    #[inline(always)]
    pub(super) fn row(&self, product: usize, output: usize) -> &[f32] {
        &self.numbers[product * self.len + output * self.width..]
    }
}

/// A pass of a form.
pub(super) trait Pass {
    /// How many products it takes.
    const PRODUCTS: usize;

    /// Columns of the products that a band has.
    fn columns(&self, band: &Band) -> usize;

    /// Puts what the kernel sees into panels, which have room for all.
    fn gather<S: Tiles>(&self, simd: S, band: &Band, panels: &mut Panels, lines: &mut Vec<f32>);

    /// Makes outputs of sums. // y: (outputs, rows * width)
    fn scatter<S: Tiles>(&self, simd: S, band: &Band, sums: &Sums, y: &mut [&mut [f32]]);
}

/// So many numbers from the first of a cache line on, of a vector that has them from then on.
pub(super) fn aligned(numbers: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if numbers.len() < len + LINE {
        numbers.resize(len + LINE, 0.0);
    }
    let start = numbers.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    &mut numbers[start..start + len]
}

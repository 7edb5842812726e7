//! Products of pairs of bf16, of pixels where they lie: an implicit matrix product (Chetlur et al. 2014, arXiv
//! 1410.0759).
//!
//! Every frame is written once as a *picture*: rounded to bf16, the channels of a pixel side by side, with a margin as
//! wide as the kernel reaches beyond the edge. What a tap sees of neighbouring outputs then are pixels that lie equally
//! far apart, which a tile reads as they are: nothing is gathered for each tap, and a tile's sums stay where they are
//! until all taps of all frames have been added. Positions run on from one row of the picture to the next, so that
//! narrow frames fill tiles too; sums of positions in the margin are dropped.
//!
//! Outputs of a picture that is doubled are of four kinds, by their place on the doubled pixels. Each is a convolution
//! of its own over the picture as it is, with the taps where their doubled pixels came from.

use rayon::prelude::*;

use super::band::Clip;
use super::shape::{Edge, Resize, Shape};
use crate::level::{Kernel, Level};
use crate::panel::{Number, Pair};
use crate::simd::{MAX_LANES, Simd, transposed};
use crate::tile::{PAIR_COLUMNS, PairTile, Products, Units, WithProducts, bf16_bits};

/// Channels whose pairs are as many as a vector has numbers.
const CHANNELS: usize = 32;
/// Pixels that are fetched of a channel at a time: planes of a power of two would push each other out of the caches.
const SEGMENT: usize = 64;

/// A kernel, packed for tiles.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    numbers: Vec<Pair>, // (panels, time, size, size, pairs, columns)
    tile: PairTile,
}

impl Weights {
    /// * `weight` - (out, time, in, size, size)
    pub(super) fn new(shape: Shape, weight: &[f32], tile: PairTile) -> Self {
        let (area, pairs) = (shape.size * shape.size, pairs(shape, tile));
        let depth = shape.time * area * pairs;
        let mut numbers = vec![0; shape.outputs.next_multiple_of(PAIR_COLUMNS) * depth];
        let each = shape.time * shape.inputs * area;
        let panels = numbers.par_chunks_mut(PAIR_COLUMNS * depth).zip(weight.par_chunks(PAIR_COLUMNS * each));
        panels.for_each(|(panel, weight)| {
            for (column, weight) in weight.chunks_exact(each).enumerate() {
                for (i, weight) in weight.chunks_exact(area).enumerate() {
                    let (time, input) = (i / shape.inputs, i % shape.inputs);
                    for (k, number) in weight.iter().enumerate() {
                        let row = (time * area + k) * pairs + input / 2;
                        let bits = u32::from(bf16_bits(*number)) << (16 * (input % 2));
                        panel[row * PAIR_COLUMNS + column] |= bits;
                    }
                }
            }
        });
        Weights { numbers, tile }
    }
}

/// Pairs of a pixel's channels, filled up to whole steps of a tile.
fn pairs(shape: Shape, tile: PairTile) -> usize {
    Pair::row(shape.inputs).next_multiple_of(tile.units().step)
}

/// How outputs lie on a picture.
#[derive(Clone, Copy)]
struct Grid {
    shape: Shape,
    /// Outputs of a kind, down and across.
    places: [usize; 2],
    /// Kinds of outputs along an axis.
    kinds: usize,
    /// Pixels from one place to the next.
    step: usize,
    /// Rows above the frame and columns left of it.
    margin: usize,
    /// Rows of a picture, and pixels of a row.
    rows: usize,
    pitch: usize,
    /// Of a pixel.
    pairs: usize,
}

impl Grid {
    fn new(shape: Shape, size: [usize; 2], tile: PairTile) -> Self {
        let (kinds, step) = match shape.resize {
            Resize::Same => (1, 1),
            Resize::Doubled => (2, 1),
            Resize::Halved => (1, 2),
        };
        let places = size.map(|length| shape.length(length) / kinds);
        let margin = seen(shape, 0, 0).unsigned_abs();
        let reach = margin + seen(shape, kinds - 1, shape.size - 1).unsigned_abs();
        let [rows, pitch] = places.map(|places| step * (places - 1) + 1 + reach);
        Grid { shape, places, kinds, step, margin, rows, pitch, pairs: pairs(shape, tile) }
    }

    /// Pairs of a picture.
    fn len(&self) -> usize {
        self.rows * self.pitch * self.pairs
    }

    /// Where taps of outputs of a kind begin, for the frames at some places. // (frames, size, size)
    fn taps(&self, frames: &[usize], kind: [usize; 2]) -> Vec<usize> {
        let size = self.shape.size;
        let at = |kind: usize, tap: usize| (self.margin as isize + seen(self.shape, kind, tap)) as usize;
        let square = (0..size).flat_map(|down| (0..size).map(move |across| [down, across]));
        let square: Vec<_> = square.map(|[down, across]| [at(kind[0], down), at(kind[1], across)]).collect();
        let tap =
            |frame: usize, [row, column]: [usize; 2]| frame * self.len() + (row * self.pitch + column) * self.pairs;
        frames.iter().flat_map(|&frame| square.iter().map(move |&place| tap(frame, place))).collect()
    }
}

/// How far from its place on the picture a kind of output sees something with a tap.
fn seen(shape: Shape, kind: usize, tap: usize) -> isize {
    let centred = (kind + tap) as isize - (shape.size / 2) as isize;
    match shape.resize {
        Resize::Same => centred,
        Resize::Doubled => centred.div_euclid(2),
        Resize::Halved => tap as isize,
    }
}

/// Computes all frames. // y: (frames, out, height, width)
pub(super) fn run(clip: &Clip, weights: &Weights, level: Level, y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    let grid = Grid::new(clip.shape, clip.size, weights.tile);
    let pictures = pictures(clip, &grid, weights.tile, level);
    let (frame_len, rows) = (clip.frame_len(), band_rows(&grid, y.len() / clip.frame_len()));
    let bands = clip.bands(y, rows * grid.kinds);
    bands.into_par_iter().for_each_init(Scratch::default, |scratch, (frame, first_row, mut y)| {
        let residual = clip.residual.get(frame * frame_len..(frame + 1) * frame_len);
        let (frames, first_row) = (clip.places(frame), first_row / grid.kinds);
        level.run(Task {
            clip,
            grid: &grid,
            weights,
            pictures: &pictures,
            frames,
            first_row,
            residual,
            y: &mut y,
            scratch,
        });
    });
}

/// Rows of places in a band: few enough for the caches, and as many bands as threads can share.
fn band_rows(grid: &Grid, frames: usize) -> usize {
    /// Places that the second cache has room for, of as many channels as there are.
    const PLACES: usize = 512;
    let height = grid.places[0];
    let bands = height.div_ceil((PLACES / grid.pitch).max(1));
    let threads = rayon::current_num_threads();
    let shared = if (frames * bands).is_multiple_of(threads) { bands } else { bands.next_multiple_of(threads) };
    height.div_ceil(shared)
}

/// Pictures of the frames before and those of the clip, with room at the end for the last tile to look beyond.
fn pictures(clip: &Clip, grid: &Grid, tile: PairTile, level: Level) -> Vec<Pair> {
    let (row_len, [h, w]) = (grid.pitch * grid.pairs, clip.size);
    let room = tile.units().rows * grid.step * grid.pairs;
    let frames: Vec<&[f32]> =
        clip.frames.iter().flat_map(|frames| frames.chunks_exact(clip.shape.inputs * h * w)).collect();
    let mut pictures = vec![0; frames.len() * grid.len() + room];
    let rows = pictures[..frames.len() * grid.len()].par_chunks_mut(row_len);
    rows.enumerate().for_each_init(
        || vec![0.0; CHANNELS * LINE],
        |lines, (i, to)| {
            let (frame, row) = (frames[i / grid.rows], i % grid.rows);
            if let Some(row) = inside(row, grid.margin, h, clip.shape.edge) {
                level.run(Write { grid, tile, frame, size: clip.size, row, lines, to });
            }
        },
    );
    pictures
}

/// The pixel of a frame that is at a place of its picture; none where there are zeros.
fn inside(place: usize, margin: usize, length: usize, edge: Edge) -> Option<usize> {
    match edge {
        Edge::Zeros => place.checked_sub(margin).filter(|&pixel| pixel < length),
        Edge::Repeated => Some(place.saturating_sub(margin).min(length - 1)),
    }
}

/// From one channel to the next where some pixels of each are side by side: no multiple of a page.
const LINE: usize = SEGMENT + MAX_LANES;

/// Writes a row of a picture.
struct Write<'a> {
    grid: &'a Grid,
    tile: PairTile,
    frame: &'a [f32], // (in, h, w)
    size: [usize; 2],
    row: usize,
    lines: &'a mut [f32], // (channels, line)
    to: &'a mut [Pair],   // (pitch, pairs), zeros
}

impl Kernel for Write<'_> {
    type Output = ();

    /// Without vectors there are no pairs either, so that nobody asks.
    fn plain(self) {
        unreachable!("pairs are multiplied in vectors")
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        let Write { grid, tile, frame, size: [h, w], row, lines, to } = self;
        let Grid { margin, pitch, pairs, .. } = *grid;
        let mut pixels = [0.0; MAX_LANES * CHANNELS];
        let width = w.min(pitch - margin);
        for (group, planes) in frame.chunks(CHANNELS * h * w).enumerate() {
            let (channels, first_pair) = (planes.len() / (h * w), group * CHANNELS / 2);
            let room = (pairs - first_pair).min(CHANNELS / 2);
            for first in (0..width).step_by(SEGMENT) {
                let count = SEGMENT.min(width - first);
                for (line, plane) in lines.chunks_exact_mut(LINE).zip(planes.chunks_exact(h * w)) {
                    line[..count].copy_from_slice(&plane[row * w + first..][..count]);
                }
                for x in (0..count).step_by(S::LANES) {
                    for c in (0..channels).step_by(S::LANES) {
                        let mut square = [simd.splat(0.0); MAX_LANES];
                        for (v, line) in square.iter_mut().zip(lines[c * LINE..].chunks_exact(LINE)).take(S::LANES) {
                            *v = simd.load(&line[x..]);
                        }
                        transposed(simd, &mut square);
                        for (v, pixel) in square.iter().zip(pixels.chunks_exact_mut(CHANNELS)).take(S::LANES) {
                            simd.store(*v, &mut pixel[c..]);
                        }
                    }
                    for (i, pixel) in pixels.chunks_exact(CHANNELS).take(S::LANES.min(count - x)).enumerate() {
                        let at = (margin + first + x + i) * pairs + first_pair;
                        tile.round(&pixel[..channels], &mut to[at..at + room], CHANNELS / 2);
                    }
                }
            }
        }
        if grid.shape.edge == Edge::Repeated {
            for place in (0..margin).chain(margin + width..pitch) {
                let pixel = if place < margin { margin } else { margin + width - 1 };
                to.copy_within(pixel * pairs..(pixel + 1) * pairs, place * pairs);
            }
        }
    }
}

/// Sums and rows of a task, kept for the next one.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,  // (kinds across, positions, columns)
    lines: Vec<f32>, // (kinds across, lanes, width)
}

/// A band of rows of an output frame.
struct Task<'a, 'y> {
    clip: &'a Clip<'a>,
    grid: &'a Grid,
    weights: &'a Weights,
    pictures: &'a [Pair], // (frames, rows, pitch, pairs)
    /// Those that the taps see, oldest first.
    frames: Vec<usize>,
    /// Of the places.
    first_row: usize,
    residual: Option<&'a [f32]>, // (out, height, width)
    y: &'a mut [&'y mut [f32]],  // (out, rows * width)
    scratch: &'a mut Scratch,
}

impl Kernel for Task<'_, '_> {
    type Output = ();

    /// As above.
    fn plain(self) {
        unreachable!("pairs are multiplied in vectors")
    }

    #[inline(always)]
    fn fast<S: Simd>(self, simd: S) {
        struct Run<'a, 'y, S>(Task<'a, 'y>, S);

        impl<S: Simd> WithProducts for Run<'_, '_, S> {
            type Output = ();

            #[inline(always)]
            fn run<P: Products<Number = Pair>>(self, products: P) {
                self.0.run(self.1, products);
            }
        }
        self.weights.tile.enter(Run(self, simd));
    }
}

impl Task<'_, '_> {
    /// By kinds of rows and panels: all positions meet a panel while it is in the second cache.
    #[inline(always)]
    fn run<S: Simd, P: Products<Number = Pair>>(mut self, simd: S, mut products: P) {
        let Task { grid, weights, pictures, .. } = self;
        let (Grid { kinds, step, pitch, pairs, places: [_, across], .. }, Units { rows, .. }) = (*grid, P::UNITS);
        let area = grid.shape.size * grid.shape.size;
        let down = self.y[0].len() / (kinds * kinds * across);
        let positions = ((down - 1) * pitch + across).next_multiple_of(rows);
        let depth = grid.shape.time * area * pairs;
        let seen = self.frames.len() * area * pairs;
        // A line more, since what is read of sums is a vector's rows.
        let len = (positions + S::LANES) * PAIR_COLUMNS;
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sums.resize(sums.len().max(kinds * len), 0.0);
        let pictures = &pictures[self.first_row * step * pitch * pairs..];
        for kind in 0..kinds {
            let taps: Vec<_> = (0..kinds).map(|across| grid.taps(&self.frames, [kind, across])).collect();
            for (p, panel) in weights.numbers.chunks_exact(PAIR_COLUMNS * depth).enumerate() {
                let panel = &panel[(depth - seen) * PAIR_COLUMNS..];
                for (taps, sums) in taps.iter().zip(sums.chunks_exact_mut(len)) {
                    for at in (0..positions).step_by(rows) {
                        let (a, sums) = (&pictures[at * step * pairs..], &mut sums[at * PAIR_COLUMNS..]);
                        products.tile_of_pieces(a, taps, P::rows(step * pairs), panel, sums, PAIR_COLUMNS);
                    }
                }
                self.scatter(simd, &sums, len, kind, p * PAIR_COLUMNS);
            }
        }
        self.scratch.sums = sums;
    }

    /// Sums of a panel to the rows of a kind of its outputs, with bias and residual.
    #[inline(always)]
    fn scatter<S: Simd>(&mut self, simd: S, sums: &[f32], len: usize, kind: usize, first: usize) {
        let Grid { kinds, pitch, places: [height, across], .. } = *self.grid;
        let (width, line) = (kinds * across, across.next_multiple_of(S::LANES));
        let lines = &mut self.scratch.lines;
        lines.resize(lines.len().max(kinds * S::LANES * line), 0.0);
        let outputs = self.clip.shape.outputs;
        for row in 0..self.y[0].len() / (kinds * width) {
            for group in (first..outputs.min(first + PAIR_COLUMNS)).step_by(S::LANES) {
                for (sums, lines) in sums.chunks_exact(len).zip(lines.chunks_exact_mut(S::LANES * line)).take(kinds) {
                    for x in (0..across).step_by(S::LANES) {
                        let mut square = [simd.splat(0.0); MAX_LANES];
                        for (i, v) in square.iter_mut().enumerate().take(S::LANES) {
                            *v = simd.load(&sums[(row * pitch + x + i) * PAIR_COLUMNS + group - first..]);
                        }
                        transposed(simd, &mut square);
                        for (v, line) in square.iter().zip(lines.chunks_exact_mut(line)).take(S::LANES) {
                            simd.store(*v, &mut line[x..]);
                        }
                    }
                }
                for output in group..outputs.min(group + S::LANES) {
                    let at = (kinds * row + kind) * width;
                    let to = &mut self.y[output][at..at + width];
                    let of = |kind: usize| &lines[(kind * S::LANES + output - group) * line..][..across];
                    if kinds == 1 {
                        to.copy_from_slice(of(0));
                    } else {
                        let both = of(0).iter().zip(of(1));
                        to.chunks_exact_mut(2).zip(both).for_each(|(to, both)| (to[0], to[1]) = (*both.0, *both.1));
                    }
                    let bias = self.clip.bias.get(output).copied().unwrap_or(0.0);
                    match self.residual {
                        Some(residual) => {
                            let plane = &residual[output * kinds * height * width..];
                            let residual = &plane[(kinds * self.first_row) * width + at..][..width];
                            to.iter_mut().zip(residual).for_each(|(to, residual)| *to += bias + residual);
                        }
                        None => to.iter_mut().for_each(|to| *to += bias),
                    }
                }
            }
        }
    }
}

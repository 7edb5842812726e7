//! Convolution over frames and time.
//!
//! A frame is computed in bands of rows, in three steps: what the kernel looks at is *gathered* into panels, matrix
//! products with the kernel follow, with tiles of sums in registers ([`crate::tile`]), and the sums are *scattered*
//! over the rows of all outputs, with bias and residual on the way. What is gathered, what the sums stand for, and how
//! many passes of the three steps that takes is the form's:
//!
//! - [`columns`]: pixels as the kernel sees them, in one product. Any kernel.
//! - [`winograd`]: tiles of pixels, transformed, in small products that need 2.25 times fewer multiplications. Kernels
//!   of 3x3.
//!
//! What is rounded to bf16 goes another way where there is an instruction for it: [`pairs`].
//!
//! No tensor of columns is made: a band's panels stay in the caches. Time and inputs are one depth of the products;
//! frames that are not there are left out of it.

mod band;
mod columns;
mod pairs;
mod shape;
mod winograd;

use band::{Band, Clip, LINE, Panels, Pass, Sums, aligned};
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::level::{Kernel, Level};
use crate::precision::Precision;
use crate::storage::{in_memory, with_numbers};
use crate::tile::{Onto, Tiles};
pub use shape::{Edge, Resize};
use shape::{Form, Shape};

/// A kernel that moves over frames and time, without looking ahead.
#[derive(Debug, Clone)]
pub struct Convolution {
    shape: Shape,
    precision: Precision,
    weights: Weights,
    bias: Option<Tensor>, // (out)
}

#[derive(Debug, Clone)]
enum Weights {
    /// As the form wants them at a level.
    Packed(Vec<f32>, Level),
    /// Rounded to bf16, at a level that multiplies it.
    Pairs(pairs::Weights, Level),
    /// For devices and types that the kernels are not for. // (out, in, time, size, size)
    Elsewhere(Tensor),
}

impl Convolution {
    /// Takes its shape from the weights and packs them for the current level.
    ///
    /// * `weight` - (out, in, time, size, size), with an odd `size`
    /// * `bias` - (out)
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        edge: Edge,
        resize: Resize,
        precision: Precision,
    ) -> Result<Self> {
        let (outputs, inputs, time, size, width) = weight.dims5()?;
        let shape = Shape { outputs, inputs, time, size, edge, resize };
        let is_odd = size % 2 == 1 || resize == Resize::Halved;
        if size != width || !is_odd || weight.elem_count() == 0 || bias.is_some_and(|bias| bias.dims() != [outputs]) {
            bail!("convolution: weight {:?}, bias {:?}", weight.dims(), bias.map(Tensor::dims));
        }
        let bias = bias.map(Tensor::contiguous).transpose()?;
        if !in_memory(&[weight]) || bias.as_ref().is_some_and(|bias| !in_memory(&[bias])) {
            let weights = Weights::Elsewhere(rounded(weight, precision)?);
            return Ok(Convolution { shape, precision, weights, bias });
        }
        let level = Level::current();
        let weight = weight.transpose(1, 2)?.contiguous()?; // (out, time, in, size, size)
        let weights = match level.pair_tile().filter(|_| precision == Precision::Bf16) {
            Some(tile) => with_numbers(&[&weight], |[weight]| pairs::Weights::new(shape, weight, tile))
                .map(|weights| Weights::Pairs(weights, level))?,
            None => {
                let weight = rounded(&weight, precision)?;
                Weights::Packed(with_numbers(&[&weight], |[weight]| level.run(Pack { shape, weight }))?, level)
            }
        };
        Ok(Convolution { shape, precision, weights, bias })
    }

    /// The next frames of a clip, (frames, in, h, w) -> (frames, out, its h, its w).
    ///
    /// * `before` - the frames before them, the last `time - 1` or all that there are. // (n, in, h, w)
    /// * `residual` - what is added to the result, of its shape
    pub fn forward(&self, x: &Tensor, before: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
        let Shape { outputs, inputs, time, .. } = self.shape;
        let (frames, channels, h, w) = x.dims4()?;
        let [height, width] = [h, w].map(|length| self.shape.length(length));
        let memory = before.map_or(0, |before| before.dims()[0]);
        if channels != inputs
            || memory >= time
            || before.is_some_and(|before| before.dims() != [memory, inputs, h, w])
            || residual.is_some_and(|residual| residual.dims() != [frames, outputs, height, width])
        {
            let [before, residual] = [before, residual].map(|tensor| tensor.map(Tensor::dims));
            bail!("convolution: {:?}, x {:?}, before {before:?}, residual {residual:?}", self.shape, x.dims());
        }
        let is_rounded_later = matches!(self.weights, Weights::Pairs(..));
        let given = |x: &Tensor| if is_rounded_later { Ok(x.clone()) } else { rounded(x, self.precision) };
        let (x, before) = (&given(x)?, before.map(given).transpose()?);
        let before = before.as_ref();
        if let Weights::Elsewhere(weight) = &self.weights {
            return self.by_candle(weight, x, before, residual);
        }
        let none = Tensor::zeros(0, DType::F32, x.device())?;
        let [before, bias, residual] = [before, self.bias.as_ref(), residual].map(|tensor| tensor.unwrap_or(&none));
        if !in_memory(&[x, before, bias, residual]) {
            bail!("convolution: the weights are f32 in main memory, x is {:?} on {:?}", x.dtype(), x.device());
        }
        let (x, before, residual) = (x.contiguous()?, before.contiguous()?, residual.contiguous()?);
        let mut y = vec![0.0; frames * outputs * height * width];
        with_numbers(&[&x, &before, bias, &residual], |[x, before, bias, residual]| {
            let clip = Clip { shape: self.shape, size: [h, w], memory, frames: [before, x], bias, residual };
            match &self.weights {
                Weights::Packed(packed, level) => clip.run(packed, *level, &mut y),
                Weights::Pairs(weights, level) => pairs::run(&clip, weights, *level, &mut y),
                Weights::Elsewhere(_) => {}
            }
        })?;
        Tensor::from_vec(y, (frames, outputs, height, width), &Device::Cpu)
    }

    /// For tensors that are not f32 in main memory.
    fn by_candle(
        &self,
        weight: &Tensor,
        x: &Tensor,
        before: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Shape { time, size, edge, resize, .. } = self.shape;
        let mut x = match before {
            Some(before) => Tensor::cat(&[before, x], 0)?,
            None => x.clone(),
        };
        let missing = time - 1 - before.map_or(Ok(0), |before| before.dim(0))?;
        let (frames, _, h, w) = x.dims4()?;
        if resize == Resize::Doubled {
            x = x.upsample_nearest2d(2 * h, 2 * w)?;
        }
        let (start, end, stride) = match resize {
            Resize::Halved => (0, size - 1, 2),
            Resize::Same | Resize::Doubled => (size / 2, size / 2, 1),
        };
        let x = match edge {
            Edge::Zeros => {
                x.pad_with_zeros(0, missing, 0)?.pad_with_zeros(2, start, end)?.pad_with_zeros(3, start, end)?
            }
            Edge::Repeated => {
                x.pad_with_same(0, missing, 0)?.pad_with_same(2, start, end)?.pad_with_same(3, start, end)?
            }
        };
        let mut y = residual.cloned();
        for tap in 0..time {
            let x = x.narrow(0, tap, frames + missing + 1 - time)?;
            let part = x.conv2d(&weight.narrow(2, tap, 1)?.squeeze(2)?.contiguous()?, 0, stride, 1, 1)?;
            y = Some(match y {
                Some(y) => (y + part)?,
                None => part,
            });
        }
        match (y, &self.bias) {
            (Some(y), Some(bias)) => y.broadcast_add(&bias.reshape(((), 1, 1))?),
            (Some(y), None) => Ok(y),
            (None, _) => bail!("convolution: a kernel without taps"),
        }
    }
}

/// As it is, or rounded to bf16 and back.
fn rounded(x: &Tensor, precision: Precision) -> Result<Tensor> {
    match precision {
        Precision::F32 => Ok(x.clone()),
        Precision::Bf16 => x.to_dtype(DType::BF16)?.to_dtype(x.dtype()),
    }
}

struct Pack<'a> {
    shape: Shape,
    weight: &'a [f32], // (out, time, in, size, size)
}

impl Kernel for Pack<'_> {
    type Output = Vec<f32>;

    fn plain(self) -> Vec<f32> {
        self.weight.to_vec()
    }

    /// // (products of all passes, groups of a tile's rows, depth, rows); filled up with zeros
    #[inline(always)]
    fn fast<S: Tiles>(self, _: S) -> Vec<f32> {
        let Pack { shape, weight } = self;
        let (rows, area) = (S::TILE_ROWS, shape.size * shape.size);
        let (products, each) = match shape.form() {
            Form::Columns => (1, area),
            Form::Winograd { across } => (across * across, 1),
        };
        let (height, depth) = (shape.outputs.next_multiple_of(rows), shape.time * shape.inputs * each);
        let mut packed = vec![0.0; products * height * depth];
        for (output, weight) in weight.chunks_exact(shape.time * shape.inputs * area).enumerate() {
            for (input, weight) in weight.chunks_exact(area).enumerate() {
                let mut put = |product: usize, k: usize, number: f32| {
                    let at = output / rows * depth + input * each + k;
                    packed[product * height * depth + at * rows + output % rows] = number;
                };
                match shape.form() {
                    Form::Columns => weight.iter().enumerate().for_each(|(k, number)| put(0, k, *number)),
                    Form::Winograd { across } => {
                        let points = winograd::kernel(weight, across);
                        (0..products).for_each(|product| put(product, 0, points[product]));
                    }
                }
            }
        }
        packed
    }
}

impl<'a> Clip<'a> {
    /// Shares bands of rows out. // y: (frames, out, height, width)
    fn run(&self, packed: &[f32], level: Level, y: &mut [f32]) {
        let output = self.size.map(|length| self.shape.length(length));
        if y.is_empty() {
            return;
        }
        let frame_len = self.frame_len();
        let bands = self.bands(y, self.band_rows(y.len() / frame_len));
        bands.into_par_iter().for_each_init(Scratch::default, |scratch, (frame, first_row, mut y)| {
            let taps: Vec<_> = self.places(frame).into_iter().map(|place| self.frame(place)).collect();
            let band = Band {
                clip: self,
                packed,
                taps: &taps,
                first_tap: self.shape.time - taps.len(),
                first_row,
                rows: y[0].len() / output[1],
                output,
                residual: self.residual.get(frame * frame_len..(frame + 1) * frame_len),
            };
            level.run(Task { band, y: &mut y, scratch });
        });
    }

    /// Rows of a band: as many columns of the products as fill panels well, few enough to keep all threads busy.
    fn band_rows(&self, frames: usize) -> usize {
        /// Columns of the products that the outer caches have room for.
        const COLUMNS: usize = 128;
        /// A multiple of every level's panel.
        const PANEL: usize = 32;
        let step = if self.shape.form() == Form::Columns { 1 } else { 2 };
        let [height, width] = self.size.map(|length| self.shape.length(length).div_ceil(step));
        let most = (frames * height * width / rayon::current_num_threads()).min(COLUMNS) / width;
        let padded = |rows: usize| {
            let columns = |rows: usize| (rows * width).next_multiple_of(PANEL);
            height / rows * columns(rows) + columns(height % rows)
        };
        let best = (1..=most.clamp(1, height)).rev().min_by_key(|&rows| padded(rows));
        best.unwrap_or(1) * step
    }
}

/// Panels and sums of a task, kept for the next one.
#[derive(Default)]
struct Scratch {
    panels: Vec<f32>,
    sums: Vec<f32>,
    lines: Vec<f32>,
}

struct Task<'a, 'y> {
    band: Band<'a>,
    y: &'a mut [&'y mut [f32]], // (outputs, rows * width)
    scratch: &'a mut Scratch,
}

impl Kernel for Task<'_, '_> {
    type Output = ();

    fn plain(self) {
        let Task { band, y, .. } = self;
        let (Clip { shape, size: [h, w], .. }, packed) = (*band.clip, band.packed);
        let Shape { inputs, time, size, .. } = shape;
        let width = band.output[1];
        for (output, y) in y.iter_mut().enumerate() {
            let weight = &packed[output * time * inputs * size * size..][band.first_tap * inputs * size * size..];
            for (at, y) in y.iter_mut().enumerate() {
                let (row, column) = (band.first_row + at / width, at % width);
                let mut sum = 0.0;
                let planes = band.taps.iter().flat_map(|frame| frame.chunks_exact(h * w));
                for (plane, weight) in planes.zip(weight.chunks_exact(size * size)) {
                    for (j, weight) in weight.iter().enumerate() {
                        let source = shape.source(row, j / size, h).zip(shape.source(column, j % size, w));
                        sum += source.map_or(0.0, |(row, column)| weight * plane[row * w + column]);
                    }
                }
                *y = sum + band.bias(output) + band.residual(output).map_or(0.0, |residual| residual[at]);
            }
        }
    }

    #[inline(always)]
    fn fast<S: Tiles>(mut self, simd: S) {
        match self.band.clip.shape.form() {
            Form::Columns => self.pass(simd, 0, columns::Pass),
            Form::Winograd { across: 3 } => {
                for i in 0..3 {
                    self.pass(simd, i, winograd::Pass::<3>(i));
                }
            }
            Form::Winograd { .. } => {
                for i in 0..4 {
                    self.pass(simd, i, winograd::Pass::<4>(i));
                }
            }
        }
    }
}

impl Task<'_, '_> {
    /// Gathers, multiplies and scatters.
    #[inline(always)]
    fn pass<S: Tiles, P: Pass>(&mut self, simd: S, index: usize, pass: P) {
        let Task { band, y, scratch } = self;
        let (products, columns) = (P::PRODUCTS, pass.columns(band));
        let (Clip { shape, .. }, packed) = (band.clip, band.packed);
        // A product: (height, depth) by (depth, width); of the depth of all taps, from the first that sees a frame on.
        let (height, width) = (shape.outputs.next_multiple_of(S::TILE_ROWS), columns.next_multiple_of(S::TILE_COLUMNS));
        let (first, all) = (band.first_tap * shape.inputs * shape.depth(), shape.time * shape.inputs * shape.depth());
        let depth = all - first;
        // A line more each, so that the same places of neighbours do not compete for the same place of a cache.
        let (panel_len, sums_len) = (depth * S::TILE_COLUMNS + LINE, height * width + LINE);
        let product_len = width / S::TILE_COLUMNS * panel_len;
        let mut panels =
            Panels { numbers: aligned(&mut scratch.panels, products * product_len), panel_len, product_len };
        let sums = aligned(&mut scratch.sums, products * sums_len);

        pass.gather(simd, band, &mut panels, &mut scratch.lines);
        for product in 0..products {
            let weights = &packed[(index * products + product) * height * all..][..height * all];
            let panels = panels.numbers[product * product_len..][..product_len].chunks_exact(panel_len);
            multiply(simd, weights, [first, all], panels, &mut sums[product * sums_len..], width);
        }
        pass.scatter(simd, band, &Sums { numbers: sums, len: sums_len, width }, y);
    }
}

/// `sums = weights panels`
///
/// * `weights` - (groups of a tile's rows, all the depth, rows), used from the `first` depth on
/// * `panels` - (depth, columns) each, and a line after them
/// * `sums` - (rows, width)
#[inline(always)]
fn multiply<'a, S: Tiles>(
    simd: S,
    weights: &[f32],
    [first, all]: [usize; 2],
    panels: impl Iterator<Item = &'a [f32]> + Clone,
    sums: &mut [f32],
    width: usize,
) {
    /// So much of a panel's depth at a time stays in the innermost cache while all weights pass by.
    const DEPTH: usize = 192;
    let (rows, columns, depth) = (S::TILE_ROWS, S::TILE_COLUMNS, all - first);
    let block = depth.div_ceil(depth.div_ceil(DEPTH));
    for begun in (0..depth).step_by(block) {
        let block = block.min(depth - begun);
        let onto = if begun > 0 { Onto::Sums } else { Onto::Nothing };
        for (p, panel) in panels.clone().enumerate() {
            let panel = &panel[begun * columns..][..block * columns];
            for (g, weights) in weights.chunks_exact(all * rows).enumerate() {
                let weights = &weights[(first + begun) * rows..][..block * rows];
                let sums = &mut sums[g * rows * width + p * columns..];
                simd.packed_tile(weights, panel, onto, sums, width);
            }
        }
    }
}

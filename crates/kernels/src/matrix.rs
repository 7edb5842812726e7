//! Matrices of weights: whatever they are kept in, read row by row, and packed in panels as products read them.

use std::borrow::Cow;
use std::ops::Deref;

use candle_core::backend::BackendStorage;
use candle_core::{DType, Layout, Result, Storage, Tensor, WithDType, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::level::{Kernel, Level};
use crate::panel::{Number, Pair, turn};
use crate::parallel::SMALL;
use crate::precision::Precision;
use crate::simd::Simd;
use crate::tile::{PAIR_COLUMNS, bf16_bits};

/// A matrix of weights whose rows are read when they are needed.
pub trait Rows: Sync {
    /// Rows and columns: outputs and inputs of the layer.
    fn dims(&self) -> (usize, usize);

    /// Rows from the first one on, as many as there is room for. // (n, in)
    fn read(&self, first: usize, to: &mut [f32]) -> Result<()>;

    /// The same rounded to bf16. // (n, in)
    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> Result<()> {
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        round(&wide, to);
        Ok(())
    }

    /// All rows as f32 in panels of so many columns, if they are kept so.
    fn panels(&self, _columns: usize) -> Option<&[f32]> {
        None
    }

    /// The same as pairs of bf16, filled up with zeros to a depth that is a multiple of `step` pairs.
    fn pair_panels(&self, _columns: usize, _step: usize) -> Option<&[u32]> {
        None
    }
}

/// What a panel of weights is made of.
pub(crate) trait Weight: Number {
    /// Rows of a matrix, each filled up to `depth`.
    fn read(w: &dyn Rows, first: usize, depth: usize, to: &mut [Self]) -> Result<()>;
    /// The whole matrix, if it is already packed.
    fn there(w: &dyn Rows, columns: usize, step: usize) -> Option<&[Self]>;
}

impl Weight for f32 {
    fn read(w: &dyn Rows, first: usize, _: usize, to: &mut [f32]) -> Result<()> {
        w.read(first, to)
    }

    fn there(w: &dyn Rows, columns: usize, _: usize) -> Option<&[f32]> {
        w.panels(columns)
    }
}

impl Weight for Pair {
    fn read(w: &dyn Rows, first: usize, depth: usize, to: &mut [Pair]) -> Result<()> {
        let inputs = w.dims().1;
        if inputs == 2 * depth {
            return w.read_bf16(first, halves(to));
        }
        let mut rows = vec![bf16::ZERO; to.len() / depth * inputs];
        w.read_bf16(first, &mut rows)?;
        for (to, row) in halves(to).chunks_exact_mut(2 * depth).zip(rows.chunks_exact(inputs)) {
            to[..inputs].copy_from_slice(row);
        }
        Ok(())
    }

    fn there(w: &dyn Rows, columns: usize, step: usize) -> Option<&[Pair]> {
        w.pair_panels(columns, step)
    }
}

/// Pairs as single numbers. Where there are pairs, the lower half of a word comes first.
#[allow(unsafe_code)]
fn halves(pairs: &mut [Pair]) -> &mut [bf16] {
    // SAFETY: the same bytes: a pair has the size of two bf16 and is aligned more strictly, and all bits are a number
    // of either.
    unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast(), 2 * pairs.len()) }
}

/// All rows of a matrix, in panels, filled up with zeros to whole steps. // (panels, row, columns)
pub(crate) fn panels<N: Weight>(w: &dyn Rows, columns: usize, step: usize) -> Result<Cow<'_, [N]>> {
    if let Some(panels) = N::there(w, columns, step) {
        return Ok(Cow::Borrowed(panels));
    }
    let (outputs, inputs) = w.dims();
    let depth = N::row(inputs).next_multiple_of(step);
    let mut panels = vec![N::default(); outputs.next_multiple_of(columns) * depth];
    let pack = |(p, panel): (usize, &mut [N])| pack(w, p * columns, depth, panel, columns);
    if outputs * inputs <= SMALL {
        panels.chunks_mut(columns * depth).enumerate().try_for_each(pack)?;
    } else {
        panels.par_chunks_mut(columns * depth).enumerate().try_for_each(pack)?;
    }
    Ok(Cow::Owned(panels))
}

/// Rows of a matrix from the first on, as many as there are and the panel has columns, in a panel.
pub(crate) fn pack<N: Weight>(w: &dyn Rows, first: usize, depth: usize, panel: &mut [N], columns: usize) -> Result<()> {
    let count = columns.min(w.dims().0 - first);
    let mut rows = vec![N::default(); count * depth];
    N::read(w, first, depth, &mut rows)?;
    if count < columns {
        panel.fill(N::default());
    }
    turn(&rows, depth, panel, columns);
    Ok(())
}

/// Rounded to bf16.
fn round(from: &[f32], to: &mut [bf16]) {
    struct Round<'a>(&'a [f32], &'a mut [bf16]);

    impl Kernel for Round<'_> {
        type Output = ();

        #[inline(always)]
        fn plain(self) {
            self.1.iter_mut().zip(self.0).for_each(|(to, from)| *to = bf16::from_bits(bf16_bits(*from)));
        }

        #[inline(always)]
        fn fast<S: Simd>(self, _: S) {
            self.plain();
        }
    }
    Level::current().run(Round(from, to));
}

/// A matrix rounded to bf16.
pub(crate) struct Rounded<'a>(pub &'a dyn Rows);

impl Rows for Rounded<'_> {
    fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        let mut narrow = vec![bf16::ZERO; to.len()];
        self.0.read_bf16(first, &mut narrow)?;
        narrow.convert_to_f32_slice(to);
        Ok(())
    }
}

/// A contiguous tensor (out, in) in main memory, f32, bf16 or f16, as the rows of a matrix.
pub fn dense(w: &Tensor) -> Result<impl Rows + '_> {
    let (storage, layout) = w.storage_and_layout();
    let known = matches!(w.dtype(), DType::F32 | DType::BF16 | DType::F16);
    if !layout.is_contiguous() || !w.device().is_cpu() || !known {
        bail!("linear: w {:?} {:?} {layout:?}", w.dtype(), w.device());
    }
    Ok(Dense { storage, layout, dims: w.dims2()? })
}

struct Dense<'a, S> {
    storage: S,
    layout: &'a Layout,
    dims: (usize, usize),
}

impl<S: Deref<Target = Storage>> Dense<'_, S> {
    fn part<T: WithDType>(&self, first: usize, count: usize) -> Result<Option<&[T]>> {
        let Storage::Cpu(storage) = &*self.storage else { bail!("linear: w is on another device") };
        let start = self.layout.start_offset() + first * self.dims.1;
        match T::DTYPE == storage.dtype() {
            true => Ok(Some(&storage.as_slice::<T>()?[start..start + count])),
            false => Ok(None),
        }
    }
}

impl<S: Deref<Target = Storage> + Sync> Rows for Dense<'_, S> {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        if let Some(rows) = self.part::<f32>(first, to.len())? {
            to.copy_from_slice(rows);
        } else if let Some(rows) = self.part::<bf16>(first, to.len())? {
            rows.convert_to_f32_slice(to);
        } else if let Some(rows) = self.part::<f16>(first, to.len())? {
            rows.convert_to_f32_slice(to);
        }
        Ok(())
    }

    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> Result<()> {
        if let Some(rows) = self.part::<bf16>(first, to.len())? {
            to.copy_from_slice(rows);
            return Ok(());
        }
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        round(&wide, to);
        Ok(())
    }
}

/// A matrix that is used again and again, kept in panels as products of a precision at the current level read it.
#[derive(Debug)]
pub struct Panels {
    numbers: Numbers, // (panels, depth, columns)
    columns: usize,
    depth: usize,
    dims: (usize, usize),
}

#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    Pairs(Vec<Pair>),
}

impl Panels {
    /// Packs a matrix. For products of bf16 it is rounded, where the level has an instruction for them.
    pub fn new(w: &dyn Rows, precision: Precision) -> Result<Self> {
        let (level, dims) = (Level::current(), w.dims());
        Ok(match level.pair_tile().filter(|_| precision == Precision::Bf16) {
            Some(tile) => {
                let step = tile.units().step;
                let numbers = Numbers::Pairs(panels(w, PAIR_COLUMNS, step)?.into_owned());
                Panels { numbers, columns: PAIR_COLUMNS, depth: Pair::row(dims.1).next_multiple_of(step), dims }
            }
            None => {
                let columns = level.tile_f32().1;
                Panels { numbers: Numbers::F32(panels(w, columns, 1)?.into_owned()), columns, depth: dims.1, dims }
            }
        })
    }

    /// Columns of the panels from a row of the matrix on, number by number, to rows.
    fn rows<N: Number, T>(&self, panels: &[N], first: usize, to: &mut [T], write: impl Fn(&mut [T], N)) {
        let each = self.dims.1.div_ceil(N::row(self.dims.1).max(1)).max(1);
        for (j, row) in (first..).zip(to.chunks_exact_mut(self.dims.1.max(1))) {
            let panel = &panels[j / self.columns * self.columns * self.depth..];
            let column = panel[j % self.columns..].iter().step_by(self.columns);
            row.chunks_mut(each).zip(column).for_each(|(to, number)| write(to, *number));
        }
    }
}

impl Rows for Panels {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<()> {
        match &self.numbers {
            Numbers::F32(numbers) => self.rows(numbers, first, to, |to, number| to[0] = number),
            Numbers::Pairs(pairs) => self.rows(pairs, first, to, |to, pair| {
                to.iter_mut().zip([pair << 16, pair & 0xffff_0000]).for_each(|(to, bits)| *to = f32::from_bits(bits));
            }),
        }
        Ok(())
    }

    fn panels(&self, columns: usize) -> Option<&[f32]> {
        match &self.numbers {
            Numbers::F32(numbers) if columns == self.columns => Some(numbers),
            _ => None,
        }
    }

    fn pair_panels(&self, columns: usize, step: usize) -> Option<&[u32]> {
        match &self.numbers {
            Numbers::Pairs(pairs)
                if columns == self.columns && self.depth == Pair::row(self.dims.1).next_multiple_of(step) =>
            {
                Some(pairs)
            }
            _ => None,
        }
    }
}

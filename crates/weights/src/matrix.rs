//! A matrix that stays in its file.

use candle_core::{DType, Device};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use navicache_models::{Packed, Rows};

use crate::entry::Entry;
use crate::file::Stored;
use crate::format::Format;

/// Where matrices that are not converted stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In the mapped file; the system keeps in memory what there is room for.
    Mapped,
    /// In the file; what was read is given back to the system after every use.
    Streamed,
}

/// A matrix that stays in its file.
#[derive(Debug)]
pub(crate) struct InFile {
    pub name: String,
    pub entry: Entry,
    /// Its numbers are those of this dtype.
    pub rounded: Option<DType>,
    pub residence: Residence,
    /// Where it is used.
    pub device: Device,
}

impl Packed for InFile {
    /// What changes them has to be added to all rows at once.
    fn open(&self) -> navicache_models::Result<Box<dyn Rows + '_>> {
        let stored = &self.entry.stored;
        let &[outputs, inputs] = stored.shape.as_slice() else {
            return Err(self.unreadable(format!("expected a matrix, found {:?}", stored.shape)));
        };
        if self.entry.changes.is_empty() && stored.rows(0, outputs).is_some() {
            return Ok(Box::new(Opened { matrix: self, outputs, inputs, changed: None }));
        }
        let values = self.entry.values().map_err(|reason| self.unreadable(reason))?;
        Ok(Box::new(Opened { matrix: self, outputs, inputs, changed: Some(values) }))
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

impl InFile {
    fn unreadable(&self, reason: String) -> navicache_models::Error {
        let place = self.entry.file.path.display().to_string();
        navicache_models::Error::UnreadableWeight { name: self.name.clone(), reason, place }
    }
}

/// A matrix in a file that is being used.
struct Opened<'a> {
    matrix: &'a InFile,
    outputs: usize,
    inputs: usize,
    /// All its numbers, where rows cannot be read alone.
    changed: Option<Vec<f32>>,
}

impl Opened<'_> {
    /// The rows that `count` numbers are, from the first one on.
    fn rows(&self, first: usize, count: usize) -> candle_core::Result<Stored> {
        let rows = self.matrix.entry.stored.rows(first, count / self.inputs.max(1));
        rows.ok_or_else(|| {
            self.error(format!("expected at most {} rows, found {first} and {count} numbers", self.outputs))
        })
    }

    fn error(&self, reason: String) -> candle_core::Error {
        candle_core::Error::wrap(self.matrix.unreadable(reason))
    }
}

impl Rows for Opened<'_> {
    fn dims(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn read(&self, first: usize, to: &mut [f32]) -> candle_core::Result<()> {
        let InFile { entry, rounded, residence, .. } = self.matrix;
        let rows = self.rows(first, to.len())?;
        match &self.changed {
            Some(values) => to.copy_from_slice(&values[first * self.inputs..][..to.len()]),
            None => entry.read(&rows, to).map_err(|reason| self.error(reason))?,
        }
        match rounded {
            Some(DType::BF16) => to.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Some(DType::F16) => to.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            _ => {}
        }
        if *residence == Residence::Streamed {
            entry.file.release(&rows);
        }
        Ok(())
    }

    /// Numbers that are bf16 already are copied.
    fn read_bf16(&self, first: usize, to: &mut [bf16]) -> candle_core::Result<()> {
        let InFile { entry, residence, .. } = self.matrix;
        if entry.stored.format == Format::Bf16 && self.changed.is_none() && entry.factors.is_none() {
            let rows = self.rows(first, to.len())?;
            for (to, bytes) in to.iter_mut().zip(entry.file.bytes_of(&rows).as_chunks().0) {
                *to = bf16::from_le_bytes(*bytes);
            }
            if *residence == Residence::Streamed {
                entry.file.release(&rows);
            }
            return Ok(());
        }
        let mut wide = vec![0.0; to.len()];
        self.read(first, &mut wide)?;
        to.convert_from_f32_slice(&wide);
        Ok(())
    }
}

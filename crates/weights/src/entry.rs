//! A tensor, where it is, and what is done to it when it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::change::Change;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::file::{Stored, WeightFile};
use crate::format::to_f32;

/// A tensor, where it is, and what is done to it when it is read.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub file: Arc<WeightFile>,
    pub stored: Stored,
    /// What its numbers are multiplied by.
    pub factors: Option<Arc<Factors>>,
    pub changes: Vec<Change>,
}

impl Entry {
    /// All numbers, f32, in their order.
    pub fn values(&self) -> Result<Vec<f32>, String> {
        let mut values = vec![0.0; self.stored.numbers()];
        self.read(&self.stored, &mut values)?;
        let base = if self.changes.iter().any(Change::needs_base) { values.clone() } else { Vec::new() };
        for change in &self.changes {
            change.add_to(&base, &mut values)?;
        }
        Ok(values)
    }

    /// Reads a part of them, without changes.
    pub fn read(&self, part: &Stored, to: &mut [f32]) -> Result<(), String> {
        to_f32(self.file.bytes_of(part), part.format, to)
            .ok_or_else(|| format!("expected f32, f16, bf16, fp8 or a quantised format, found {}", part.format))?;
        if let Some(factors) = &self.factors {
            factors.multiply(part, to);
        }
        Ok(())
    }

    pub fn tensor(&self) -> Result<Tensor, String> {
        Tensor::from_vec(self.values()?, self.stored.shape.as_slice(), &Device::Cpu).map_err(|e| e.to_string())
    }
}

/// Adds what a file lists; a name that is there already is refused.
pub(crate) fn add(
    tensors: &mut BTreeMap<String, Entry>,
    file: &Arc<WeightFile>,
    listed: impl IntoIterator<Item = (String, Stored)>,
) -> Result<()> {
    for (name, stored) in listed {
        let entry = Entry { file: file.clone(), stored, factors: None, changes: Vec::new() };
        if let Some(other) = tensors.insert(name.clone(), entry) {
            let reason = format!("{name}: there twice, first in {}", other.file.path.display());
            return Err(Error::file(&file.path, reason));
        }
    }
    Ok(())
}

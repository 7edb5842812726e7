//! Where models run, and with how much memory.

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device};
use navicache_models::Precision;

use crate::Result;
use crate::device::{DtypeChoice, free_bytes};
use navicache_weights::Tensors;

/// Where models run, and with how much memory.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub device: Device,
    pub dtype: DtypeChoice,
    pub memory: Option<u64>,
}

impl Host {
    /// Format that matrices of some weights are kept in; `None` is as stored. A GPU has no use for what is as stored:
    /// its products are of bf16, as the reference pipelines run, or of f32.
    pub fn dtype_of(&self, tensors: &Tensors) -> Option<DType> {
        let dtype = self.dtype.for_parameters(tensors.parameters());
        if self.device.is_cpu() { dtype } else { dtype.or(Some(DType::BF16)) }
    }

    /// Bytes that some weights take of it: what is quantised stays so on the CPU only.
    pub fn kept_bytes(&self, tensors: &Tensors) -> u64 {
        match self.dtype_of(tensors) {
            Some(dtype) if !self.device.is_cpu() => tensors.parameters() * dtype.size_in_bytes() as u64,
            dtype => tensors.kept_bytes(dtype),
        }
    }

    /// What their products multiply.
    pub fn precision_of(&self, tensors: &Tensors) -> Precision {
        self.dtype.precision(self.dtype_of(tensors), tensors.main_format())
    }

    /// The weights of a component, for a model to read.
    pub fn weights<'a>(&self, tensors: &'a Tensors) -> navicache_models::Weights<'a> {
        let weights = navicache_models::Weights::new(tensors, &self.device, self.dtype_of(tensors));
        weights.with_precision(self.precision_of(tensors))
    }

    /// The same, every matrix as it is stored; on a GPU in f32, so that its products are.
    pub fn weights_as_stored<'a>(&self, tensors: &'a Tensors) -> navicache_models::Weights<'a> {
        let dtype = (!self.device.is_cpu()).then_some(DType::F32);
        navicache_models::Weights::new(tensors, &self.device, dtype)
    }

    /// Bytes of the device's memory that may be used, if they are known.
    pub fn memory(&self) -> Option<u64> {
        self.memory.or_else(|| free_bytes(&self.device))
    }

    /// Bytes that one thing may take of it, so that there is some left for all others.
    pub fn budget(&self) -> u64 {
        self.memory().map_or(u64::MAX, share_of_memory)
    }
}

/// The part of a memory that one thing may take, so that there is some left for all others.
pub fn share_of_memory(bytes: u64) -> u64 {
    bytes / 4 * 3
}

/// A model that is read on first use, and kept until room is needed.
pub(crate) struct Resident<T: ?Sized>(Mutex<Option<Arc<T>>>);

impl<T: ?Sized> Default for Resident<T> {
    fn default() -> Self {
        Resident(Mutex::new(None))
    }
}

impl<T: ?Sized> Resident<T> {
    pub fn get(&self, load: impl FnOnce() -> Result<Arc<T>>) -> Result<Arc<T>> {
        let mut resident = self.lock();
        match &*resident {
            Some(model) => Ok(model.clone()),
            None => Ok(resident.insert(load()?).clone()),
        }
    }

    pub fn free(&self) {
        *self.lock() = None;
    }

    /// A panic while a model was read leaves nothing half done behind: it is only put here when it is whole.
    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

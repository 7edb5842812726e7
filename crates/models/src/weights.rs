//! Named tensors, wherever they come from. A model asks for a weight by the path its code has; who reads files is the engine.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// A place that holds named tensors.
pub trait Source {
    /// Shape of a tensor, or `None` when there is none by that name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// Reads a tensor, converted to `dtype` (`None`: as stored) on `device`.
    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Tensor>;
    /// The file that holds a tensor, or the folder that was searched for it; for error messages.
    fn place(&self, name: &str) -> String;
}

/// A cursor into a [`Source`]: a prefix, the device, and the dtype that matrices are kept in.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a dyn Source,
    prefix: String,
    device: Device,
    dtype: Option<DType>,
}

impl<'a> Weights<'a> {
    /// The root of `source`. `dtype`: what matrices are kept in, `None` for as stored.
    pub fn new(source: &'a dyn Source, device: &Device, dtype: Option<DType>) -> Self {
        Self { source, prefix: String::new(), device: device.clone(), dtype }
    }

    /// One step down the path: `w.pp("blocks").pp(3)` is `blocks.3`.
    pub fn pp(&self, part: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Self { prefix, ..self.clone() }
    }

    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether there is a tensor of this name below the cursor.
    pub fn contains(&self, name: &str) -> bool {
        self.source.shape(&self.path(name)).is_some()
    }

    /// A matrix or convolution kernel of the expected shape, in the dtype that weights are kept in.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get(name, shape, self.dtype)
    }

    /// A small tensor (bias, norm, table) of the expected shape, in f32 whatever is stored.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get(name, shape, Some(DType::F32))
    }

    fn get(&self, name: &str, shape: &[usize], dtype: Option<DType>) -> Result<Tensor> {
        let name = self.path(name);
        match self.source.shape(&name) {
            None => {
                let place = self.source.place(&name);
                Err(Error::MissingWeight { name, expected: shape.to_vec(), place })
            }
            Some(found) if found != shape => {
                let place = self.source.place(&name);
                Err(Error::WrongShape { name, expected: shape.to_vec(), found, place })
            }
            Some(_) => self.source.load(&name, dtype, &self.device),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

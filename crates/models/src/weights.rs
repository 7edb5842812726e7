//! Named tensors, wherever they come from. A model asks for a weight by the path its code has; who reads files is the
//! engine.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use navicache_kernels::{Precision, Rows};

use crate::{Error, Result};

/// A matrix that is not kept as a tensor: quantised, 8 bits wide, or on disk. Who reads files knows how; a model only
/// uses it.
pub trait Packed: std::fmt::Debug + Send + Sync {
    /// Its rows, to be read for one use of the matrix.
    fn open(&self) -> Result<Box<dyn Rows + '_>>;
    /// Where tensors of it belong.
    fn device(&self) -> &Device;
}

/// A matrix of weights.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// A tensor, in the format that weights are kept in. // (out, in)
    Dense(Tensor),
    /// Read at every use.
    Packed(Arc<dyn Packed>),
}

impl Matrix {
    /// As a tensor of a dtype. // (out, in)
    pub fn widened(&self, dtype: DType) -> Result<Tensor> {
        Ok(match self {
            Matrix::Dense(tensor) => tensor.to_dtype(dtype)?,
            Matrix::Packed(packed) => {
                let rows = packed.open()?;
                let (outputs, inputs) = rows.dims();
                let mut values = vec![0.0; outputs * inputs];
                rows.read(0, &mut values)?;
                Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)?
                    .to_dtype(dtype)?
                    .to_device(packed.device())?
            }
        })
    }

    /// As a tensor for products of a precision on a device that is not the CPU. // (out, in)
    pub(crate) fn on_device(&self, precision: Precision) -> Result<Tensor> {
        match (self, precision) {
            (Matrix::Dense(tensor), _) => Ok(tensor.clone()),
            (_, Precision::F32) => self.widened(DType::F32),
            (_, Precision::Bf16) => self.widened(DType::BF16),
        }
    }

    /// Some of its rows, f32. // (n, in)
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Matrix::Dense(tensor) => {
                tensor.index_select(&Tensor::new(indices, tensor.device())?, 0)?.to_dtype(DType::F32)?
            }
            Matrix::Packed(packed) => {
                let rows = packed.open()?;
                let (outputs, inputs) = rows.dims();
                if let Some(&index) = indices.iter().find(|&&index| index as usize >= outputs) {
                    return Err(Error::Input {
                        what: "row of a matrix",
                        expected: format!("less than {outputs}"),
                        found: index.to_string(),
                    });
                }
                let mut values = vec![0.0; indices.len() * inputs];
                for (&index, row) in indices.iter().zip(values.chunks_exact_mut(inputs.max(1))) {
                    rows.read(index as usize, row)?;
                }
                Tensor::from_vec(values, (indices.len(), inputs), packed.device())?
            }
        })
    }
}

/// A place that holds named tensors.
pub trait Source {
    /// Shape of a tensor, or `None` when there is none by that name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// Reads a tensor, converted to `dtype` (`None`: as stored) on `device`.
    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Tensor>;
    /// A matrix, in `dtype` (`None`: as stored) on `device` or packed, as the source sees fit.
    fn matrix(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Matrix> {
        self.load(name, dtype, device).map(Matrix::Dense)
    }
    /// The file that holds a tensor, or the folder that was searched for it; for error messages.
    fn place(&self, name: &str) -> String;
}

/// Refuses a field of a configuration that speaks of less than weights have. Of more, the first weight that is missing
/// says so.
pub(crate) fn covers<T>(place: &'static str, field: &'static str, said: T, found: T) -> Result<()>
where
    T: PartialOrd + std::fmt::Debug,
{
    if said >= found {
        return Ok(());
    }
    Err(Error::Config { place, field, found: format!("{said:?}"), expected: format!("{found:?}, as in the weights") })
}

/// The widths of a VAE's levels, from full resolution down, and how many residual blocks its encoder's levels have, of
/// the weights of a decoder as HunyuanVideo and CogVideoX have it.
pub(crate) fn decoder_levels(source: &dyn Source) -> Result<(Vec<usize>, usize)> {
    let block = |level: usize, i: usize| format!("decoder.up_blocks.{level}.resnets.{i}.conv1.conv.weight");
    let levels = count(source, |level| block(level, 0));
    let widths = (0..levels).rev().map(|level| Ok(dims::<5>(source, &block(level, 0))?[0])).collect::<Result<_>>()?;
    Ok((widths, count(source, |i| block(0, i)).saturating_sub(1)))
}

/// The shape of a tensor that says something about a model, for weights that come without a configuration.
pub(crate) fn dims<const N: usize>(source: &dyn Source, name: &str) -> Result<[usize; N]> {
    let found = source.shape(name);
    found.as_deref().and_then(|shape| shape.try_into().ok()).ok_or_else(|| Error::UnreadableWeight {
        name: name.to_string(),
        reason: match &found {
            Some(shape) => format!("expected {N} dimensions, found {shape:?}"),
            None => "expected it, found nothing by that name".to_string(),
        },
        place: source.place(name),
    })
}

/// How many tensors of a row there are: `name(0)`, `name(1)` and so on.
pub(crate) fn count(source: &dyn Source, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| source.shape(&name(i)).is_some()).count()
}

/// A cursor into a [`Source`]: a prefix, the device, the dtype that matrices are kept in, and how they are multiplied.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a dyn Source,
    prefix: String,
    device: Device,
    dtype: Option<DType>,
    precision: Precision,
}

impl<'a> Weights<'a> {
    /// The root of `source`. `dtype`: what matrices are kept in, `None` for as stored. Products are in f32.
    pub fn new(source: &'a dyn Source, device: &Device, dtype: Option<DType>) -> Self {
        Self { source, prefix: String::new(), device: device.clone(), dtype, precision: Precision::F32 }
    }

    /// The same with another precision of products and attention.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What products and attention multiply.
    pub fn precision(&self) -> Precision {
        self.precision
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

    /// A matrix of the expected shape, in the dtype that weights are kept in.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let name = self.checked(name, shape)?;
        self.source.matrix(&name, self.dtype, &self.device)
    }

    /// A small tensor (bias, norm, table, convolution kernel) of the expected shape, in f32 whatever is stored.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.checked(name, shape)?;
        self.source.load(&name, Some(DType::F32), &self.device)
    }

    /// The full path of a tensor that is there and has a shape.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<String> {
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
            Some(_) => Ok(name),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

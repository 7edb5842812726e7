//! What the kernels ask of tensors.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Whether all are f32 in main memory, for operations that have no kernel for GPUs.
pub(crate) fn in_memory(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// Whether all are f32, in main memory or on a GPU that there are kernels for.
pub(crate) fn fit(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| !tensor.device().is_metal() && tensor.dtype() == DType::F32)
}

/// The numbers of a contiguous tensor.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((first, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous: {layout:?}") };
    Ok(&storage.as_slice::<f32>()?[first..end])
}

/// A tensor (heads, rows, width) of any strides, but that the numbers of a row are neighbours.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    numbers: &'a [f32],
    start: usize,
    strides: [usize; 2], // of heads and of rows
    pub(crate) width: usize,
}

impl<'a> Heads<'a> {
    /// The same tensor, or a copy where the numbers of a row are not neighbours.
    pub(crate) fn tensor(x: &Tensor) -> Result<Tensor> {
        if x.stride()[2] == 1 || x.dim(2)? == 1 { Ok(x.clone()) } else { x.contiguous() }
    }

    /// Of what [`Heads::tensor`] gave.
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (_, _, width) = layout.shape().dims3()?;
        let strides = [layout.stride()[0], layout.stride()[1]];
        Ok(Heads { numbers: storage.as_slice()?, start: layout.start_offset(), strides, width })
    }

    #[inline(always)]
    pub(crate) fn row(&self, head: usize, row: usize) -> &'a [f32] {
        let start = self.start + head * self.strides[0] + row * self.strides[1];
        &self.numbers[start..start + self.width]
    }
}

/// Calls `f` with the numbers of contiguous tensors in main memory.
pub(crate) fn with_numbers<const N: usize, T>(tensors: &[&Tensor; N], f: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut numbers: [&[f32]; N] = [&[]; N];
    for ((storage, layout), numbers) in storages.iter().zip(&mut numbers) {
        let Storage::Cpu(storage) = &**storage else { bail!("the tensor is on another device") };
        *numbers = contiguous(storage, layout)?;
    }
    Ok(f(numbers))
}

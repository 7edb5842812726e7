//! What the kernels ask of tensors.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

/// Whether all are f32 in main memory.
pub(crate) fn fit(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// The numbers of a contiguous tensor.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((first, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous: {layout:?}") };
    Ok(&storage.as_slice::<f32>()?[first..end])
}

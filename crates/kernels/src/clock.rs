//! How long work takes on the device that does it.

use std::time::Instant;

use candle_core::{DType, Device, Error, Tensor};

/// What `f` gives, and the seconds that its work took on `device`: on a GPU, which is still at it when a call returns,
/// from one event of its own to another; elsewhere by a clock.
pub fn seconds_on<T, E: From<Error>>(device: &Device, f: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::cuda::seconds_on(device, f);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    let clock = Instant::now();
    let result = f()?;
    Ok((result, clock.elapsed().as_secs_f64()))
}

/// Waits until a tensor is computed, by reading its first number back. A copy of that is read: else a GPU would send
/// the whole tensor.
///
/// # Errors
/// The tensor is empty, or what it comes from failed on the device.
pub fn wait_for(x: &Tensor) -> candle_core::Result<()> {
    x.flatten_all()?.narrow(0, 0, 1)?.force_contiguous()?.to_dtype(DType::F32)?.to_vec1::<f32>().map(drop)
}

//! Time by a GPU's own events.

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Error, Result};

/// What `f` gives, and the seconds from where the device began with what `f` asks of it to where it was done. Waits.
pub(crate) fn seconds_on<T, E: From<Error>>(
    device: &CudaDevice,
    f: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(T, f64), E> {
    let stream = device.cuda_stream();
    let event = || -> Result<_> { stream.record_event(Some(CU_EVENT_DEFAULT)).w() };
    let before = event()?;
    let result = f()?;
    let milliseconds = before.elapsed_ms(&event()?).w()?;
    Ok((result, f64::from(milliseconds) / 1e3))
}

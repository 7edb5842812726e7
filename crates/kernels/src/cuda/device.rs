//! A GPU, as everything here uses it.

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUmemPool_attribute_enum::{
        self as Attribute, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
        CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    },
    CUmemoryPool, cuDeviceGetDefaultMemPool, cuMemPoolGetAttribute, cuMemPoolSetAttribute,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result};

/// Opens a GPU, with one queue of work for all threads.
///
/// candle's own way gives each thread a queue of its own, and nothing waits for another thread's: what one thread
/// computes, another would read too early. Memory that was freed stays with the process, to be taken again without
/// asking the driver.
///
/// # Errors
/// There is no such GPU, or the driver does not work.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: with a single queue, everything happens in the order in which it was asked for.
    unsafe { device.disable_event_tracking() };
    if let Some(pool) = pool(&device)? {
        let mut kept = u64::MAX;
        // SAFETY: the attribute is a number of bytes, of 64 bits.
        unsafe { cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut kept).cast()) }
            .result()
            .w()?;
    }
    Ok(Device::Cuda(device))
}

/// Memory that can be taken, in bytes: what the GPU has left, and what was freed and stayed with this process.
///
/// # Errors
/// The driver does not say.
pub fn free_bytes(device: &CudaDevice) -> Result<u64> {
    let (left, _) = device.cuda_stream().context().mem_get_info().w()?;
    let freed = match pool(device)? {
        Some(pool) => {
            let bytes = |attribute: Attribute| {
                let mut bytes = 0u64;
                // SAFETY: the attribute is a number of bytes, of 64 bits.
                unsafe { cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result().w()?;
                Result::Ok(bytes)
            };
            bytes(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?)
        }
        None => 0,
    };
    Ok(left as u64 + freed)
}

/// What memory is taken from, where the driver has such a thing.
fn pool(device: &CudaDevice) -> Result<Option<CUmemoryPool>> {
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(None);
    }
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is open; the pool is written before it is read.
    unsafe { cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }.result().w()?;
    Ok(Some(pool))
}

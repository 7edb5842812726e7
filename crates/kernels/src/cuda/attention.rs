//! Attention on tensor cores, for what `attention.cu` and, on Hopper, `attention_hopper.cu` have kernels for.

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CUtensorMap,
    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
    CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B, cuTensorMapEncodeTiled,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::{ATTENTION, ATTENTION_HOPPER, HOPPER, capability, contiguous, grid};

/// Whether there is a kernel for such heads, of 64 or 128 numbers, once they are bf16.
pub(crate) fn has_attention(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device().is_cuda() && x.dims().last().is_some_and(|d| [64, 128].contains(d)))
}

/// Queries, keys and values in bf16, as the kernel that will run reads them: on Hopper with any strides of heads and
/// tokens, so that heads of a projection stay where they are.
pub(crate) fn operands(tensors: [&Tensor; 3], biased: bool) -> Result<[Tensor; 3]> {
    let Device::Cuda(device) = tensors[0].device() else { bail!("attention: the queries are not on a GPU") };
    let strided = !biased && capability(device)? == HOPPER;
    let read = |x: &Tensor| -> Result<Tensor> {
        let by_tokens = x.transpose(0, 1)?;
        match strided && by_tokens.is_contiguous() {
            true => by_tokens.to_dtype(DType::BF16)?.transpose(0, 1),
            false => x.contiguous()?.to_dtype(DType::BF16),
        }
    };
    let [q, k, v] = tensors.map(read);
    Ok([q?, k?, v?])
}

/// `softmax(scale q k^T + bias) v`, f32, (n, heads * d), of what `operands` gave.
///
/// * `q` - (heads, n, d), `k` - (heads, m, d), `v` - (heads, m, d), bf16
/// * `bias` - (heads, n, m), f32, whose numbers of a row are neighbours
pub(crate) fn attention(
    [(q, q_layout), (k, k_layout), (v, v_layout)]: [(&CudaStorage, &Layout); 3],
    scale: f32,
    bias: Option<&Tensor>,
) -> Result<(CudaStorage, Shape)> {
    let ((heads, n, d), m) = (q_layout.shape().dims3()?, k_layout.shape().dims3()?.1);
    let (device, shape) = (&q.device, Shape::from((n, heads * d)));
    // SAFETY: the kernels write every number of their result and read none of it.
    let mut y = unsafe { device.alloc::<f32>(shape.elem_count())? };
    let sizes = [heads, n, m].map(|size| size as i64);
    let call = Call { q: (q, q_layout), k: (k, k_layout), v: (v, v_layout), sizes, d, scale };
    match bias {
        _ if shape.elem_count() == 0 => {}
        None if m > 0 && capability(device)? == HOPPER => call.on_hopper(&mut y, device)?,
        bias => call.anywhere(&mut y, bias, device)?,
    }
    Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape))
}

struct Call<'a> {
    q: (&'a CudaStorage, &'a Layout), // (heads, n, d)
    k: (&'a CudaStorage, &'a Layout), // (heads, m, d)
    v: (&'a CudaStorage, &'a Layout), // (heads, m, d)
    sizes: [i64; 3],                  // heads, n, m
    d: usize,
    scale: f32,
}

impl Call<'_> {
    /// `attention.cu`
    fn anywhere(&self, y: &mut CudaSlice<f32>, bias: Option<&Tensor>, device: &CudaDevice) -> Result<()> {
        const QUERIES: usize = 64;
        const THREADS: u32 = 128;
        let bias = bias.map(Tensor::storage_and_layout);
        let (bias, [head, query]) = match &bias {
            Some((storage, layout)) => {
                let Storage::Cuda(storage) = &**storage else { bail!("attention: the bias is not on the GPU") };
                let bias = storage.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
                (Some(bias), [layout.stride()[0] as i64, layout.stride()[1] as i64])
            }
            None => (None, [0, 0]),
        };
        let name = if self.d == 64 { "attention_64" } else { "attention_128" };
        let (kernel, stream) = (ATTENTION.kernel(name, device)?, device.cuda_stream());
        let [q, k, v] = [self.q, self.k, self.v].map(|(x, layout)| contiguous::<bf16>(x, layout));
        let (q, k, v, nothing) = (q?, k?, v?, 0u64);
        let mut call = stream.launch_builder(&kernel);
        call.arg(y).arg(&q).arg(&k).arg(&v);
        match &bias {
            Some(bias) => call.arg(bias),
            None => call.arg(&nothing),
        };
        for size in &self.sizes {
            call.arg(size);
        }
        call.arg(&head).arg(&query).arg(&self.scale);
        // SAFETY: the arguments are those that the kernel declares, the shapes those of the tensors, of heads that it
        // is for. Blocks cover all queries of all heads; rows beyond the last query or key are neither read nor
        // written.
        unsafe { call.launch(grid(self.blocks(QUERIES), THREADS)?) }.w()?;
        Ok(())
    }

    /// `attention_hopper.cu`, for at least one key.
    fn on_hopper(&self, y: &mut CudaSlice<f32>, device: &CudaDevice) -> Result<()> {
        const ROWS: u32 = 128; // queries of a block, and keys at a time
        const THREADS: u32 = 384;
        // Queries, two blocks of keys and values each, barriers, and up to a whole KiB that the first ones begin at.
        let shared_bytes = 5 * ROWS * self.d as u32 * 2 + 128 + 1024;
        let name = if self.d == 64 { "attention_hopper_64" } else { "attention_hopper_128" };
        let (kernel, stream) = (ATTENTION_HOPPER.kernel(name, device)?, device.cuda_stream());
        kernel.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32).w()?;
        let maps = [self.q, self.k, self.v].map(|(x, layout)| TensorMap::new(x, layout, [64, ROWS, 1], &stream));
        let [q, k, v] = maps;
        let maps = [q?, k?, v?];
        let config = LaunchConfig { shared_mem_bytes: shared_bytes, ..grid(self.blocks(ROWS as usize), THREADS)? };
        let mut call = stream.launch_builder(&kernel);
        call.arg(y).arg(&maps[0]).arg(&maps[1]).arg(&maps[2]);
        for size in &self.sizes {
            call.arg(size);
        }
        call.arg(&self.scale);
        // SAFETY: the arguments are those that the kernel declares, the maps those of the tensors, which live until
        // the stream has read them. Blocks cover all queries of all heads; rows beyond the last query are not written.
        unsafe { call.launch(config) }.w()?;
        Ok(())
    }

    /// So many that all queries have one.
    fn blocks(&self, queries: usize) -> usize {
        self.sizes[0] as usize * (self.sizes[1] as usize).div_ceil(queries)
    }
}

/// Where a tensor of bf16 lies, for the copy engine.
#[repr(transparent)]
struct TensorMap(CUtensorMap);

// SAFETY: a kernel takes it by value, as the 128 bytes that the driver has written.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Of a tensor of three dimensions, whose numbers of a row are neighbours, brought in boxes of such sizes, fastest
    /// first, rows swizzled by 128 bytes.
    fn new(x: &CudaStorage, layout: &Layout, sizes: [u32; 3], stream: &CudaStream) -> Result<Self> {
        let ((heads, rows, d), &[head, row, 1]) = (layout.shape().dims3()?, layout.stride()) else {
            bail!("attention: numbers of a row are apart: {layout:?}")
        };
        let mut map = CUtensorMap { opaque: [0; 16] };
        let numbers = x.as_cuda_slice::<bf16>()?.slice(layout.start_offset()..);
        let (address, _read) = numbers.device_ptr(stream);
        let (dims, strides) = ([d, rows, heads].map(|n| n as u64), [row, head].map(|n| n as u64 * 2)); // in bytes
        // SAFETY: all pointers are to values that live until the call returns; the driver checks what they say.
        unsafe {
            cuTensorMapEncodeTiled(
                &raw mut map,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                3,
                address as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                sizes.as_ptr(),
                [1; 3].as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .w()?;
        Ok(TensorMap(map))
    }
}

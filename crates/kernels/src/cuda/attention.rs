//! Attention on tensor cores, for what `attention.cu` has kernels for.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::{ATTENTION, contiguous, grid};

/// Queries and threads of a block.
const QUERIES: usize = 64;
const THREADS: u32 = 128;

/// Whether there is a kernel for such heads, of 64 or 128 numbers, once they are bf16.
pub(crate) fn has_attention(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device().is_cuda() && x.dims().last().is_some_and(|d| [64, 128].contains(d)))
}

/// `softmax(scale q k^T + bias) v`, f32, (n, heads * d). All but the bias are contiguous.
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
    // SAFETY: the kernel writes every number of its result and reads none of it.
    let mut y = unsafe { device.alloc::<f32>(shape.elem_count())? };
    if shape.elem_count() > 0 {
        let (q, k, v) =
            (contiguous::<bf16>(q, q_layout)?, contiguous::<bf16>(k, k_layout)?, contiguous::<bf16>(v, v_layout)?);
        let bias = bias.map(Tensor::storage_and_layout);
        let (bias, [head, query]) = match &bias {
            Some((storage, layout)) => {
                let Storage::Cuda(storage) = &**storage else { bail!("attention: the bias is not on the GPU") };
                let bias = storage.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
                (Some(bias), [layout.stride()[0] as i64, layout.stride()[1] as i64])
            }
            None => (None, [0, 0]),
        };
        let name = if d == 64 { "attention_64" } else { "attention_128" };
        let (kernel, stream) = (ATTENTION.kernel(name, device)?, device.cuda_stream());
        let (nothing, sizes) = (0u64, [heads, n, m].map(|size| size as i64));
        let mut call = stream.launch_builder(&kernel);
        call.arg(&mut y).arg(&q).arg(&k).arg(&v);
        match &bias {
            Some(bias) => call.arg(bias),
            None => call.arg(&nothing),
        };
        for size in &sizes {
            call.arg(size);
        }
        call.arg(&head).arg(&query).arg(&scale);
        // SAFETY: the arguments are those that the kernel declares, the shapes those of the tensors, of heads that it
        // is for. Blocks cover all queries of all heads; rows beyond the last query or key are neither read nor
        // written.
        unsafe { call.launch(grid(heads * n.div_ceil(QUERIES), THREADS)?) }.w()?;
    }
    Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape))
}

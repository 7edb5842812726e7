//! Product with a matrix of bf16 by cuBLAS, which sums in f32 and writes f32.

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Call, ROWS, contiguous};

/// `bf16(x) w^T + bias`, (n, in) -> (n, out), f32.
///
/// * `w` - (out, in), bf16
/// * `bias` - (out)
pub(crate) fn linear_bf16(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = match bias {
        Some(bias) => bias.to_dtype(DType::F32)?.contiguous()?,
        None => Tensor::zeros(w.dim(0)?, DType::F32, w.device())?,
    };
    x.to_dtype(DType::BF16)?.contiguous()?.apply_op3_no_bwd(&w.contiguous()?, &bias, &Op)
}

struct Op;

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "linear-bf16"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("this is the product on a GPU; on the CPU there is another")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let ((n, inputs), outputs) = (layout.shape().dims2()?, bias_layout.shape().elem_count());
        let shape = Shape::from((n, outputs));
        let rows = Call {
            file: ROWS,
            name: "repeat_row",
            inputs: &[contiguous(bias, bias_layout)?],
            sizes: &[outputs],
            numbers: &[],
        };
        let mut y = rows.run(n, &shape, &x.device)?;
        if shape.elem_count() > 0 && inputs > 0 {
            let [Ok(rows), Ok(columns), Ok(depth)] = [outputs, n, inputs].map(i32::try_from) else {
                bail!("linear: ({n}, {inputs}) by ({outputs}, {inputs}) is beyond cuBLAS")
            };
            let (blas, stream) = (x.device.cublas_handle(), x.device.cuda_stream());
            let x = x.as_cuda_slice::<bf16>()?.slice(layout.start_offset()..);
            let w = w.as_cuda_slice::<bf16>()?.slice(w_layout.start_offset()..);
            let y = y.as_cuda_slice_mut::<f32>()?;
            let ((x, _x), (w, _w), (y, _y)) = (x.device_ptr(&stream), w.device_ptr(&stream), y.device_ptr_mut(&stream));
            let one = 1.0f32;
            // To cuBLAS, which counts columns first, x and y are transposed, and w has to be. // y^T (out, n) += w
            // (out, in) x^T (in, n) SAFETY: the shapes are those of the tensors, all contiguous; `one` is of the type
            // that sums in f32 take it in, and outlives the call.
            unsafe {
                gemm_ex(
                    *blas.handle(),
                    sys::cublasOperation_t::CUBLAS_OP_T,
                    sys::cublasOperation_t::CUBLAS_OP_N,
                    rows,
                    columns,
                    depth,
                    (&raw const one).cast(),
                    w as *const _,
                    sys::cudaDataType::CUDA_R_16BF,
                    depth,
                    x as *const _,
                    sys::cudaDataType::CUDA_R_16BF,
                    depth,
                    (&raw const one).cast(),
                    y as *mut _,
                    sys::cudaDataType::CUDA_R_32F,
                    rows,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .map_err(candle_core::Error::wrap)?;
        }
        Ok((y, shape))
    }
}

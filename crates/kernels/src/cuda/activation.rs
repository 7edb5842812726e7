//! GELU that is read by a product of bf16.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Call, ELEMENTS, contiguous, covering};

/// GELU, rounded to bf16. // any shape, f32 -> bf16
pub(crate) fn rounded_gelu(x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Op)
}

struct Op;

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "gelu-bf16"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this is the GELU of a GPU; on the CPU there is another")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (shape, count) = (layout.shape().clone(), layout.shape().elem_count());
        let inputs = [contiguous(x, layout)?];
        let call = Call { file: ELEMENTS, name: "gelu_bf16", inputs: &inputs, sizes: &[count], numbers: &[] };
        Ok((call.run_as::<bf16>(covering(count.div_ceil(2)), &shape, &x.device)?, shape))
    }
}

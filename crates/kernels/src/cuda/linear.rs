//! Product with a matrix of bf16 by cuBLASLt, which sums in f32, adds the bias and writes f32 in one pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, DeviceLocation, Error, Layout, Result, Shape, Tensor, bail,
};
use half::bf16;

use super::contiguous;

/// `bf16(x) w^T + bias`, (n, in) -> (n, out), f32.
///
/// * `w` - (out, in), bf16
/// * `bias` - (out)
pub(crate) fn linear_bf16(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let x = x.to_dtype(DType::BF16)?.contiguous()?;
    let w = w.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3_no_bwd(&w, &bias.to_dtype(DType::F32)?.contiguous()?, &Op { biased: true }),
        None => x.apply_op3_no_bwd(&w, &w, &Op { biased: false }),
    }
}

/// With `biased`, the third input is the bias; else it is not read.
struct Op {
    biased: bool,
}

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
        let ((n, inputs), (outputs, _)) = (layout.shape().dims2()?, w_layout.shape().dims2()?);
        let (device, shape) = (&x.device, Shape::from((n, outputs)));
        if shape.elem_count() == 0 || inputs == 0 {
            bail!("linear: ({n}, {inputs}) by ({outputs}, {inputs}) has nothing to multiply");
        }
        // SAFETY: the product writes every number of its result and reads none of it.
        let mut y = unsafe { device.alloc::<f32>(shape.elem_count())? };
        let (x, w) = (contiguous::<bf16>(x, layout)?, contiguous::<bf16>(w, w_layout)?);
        let bias = if self.biased { Some(contiguous::<f32>(bias, bias_layout)?) } else { None };
        let (library, stream) = (Library::on(device)?, device.cuda_stream());
        let product = Product::new(outputs, n, inputs)?;
        let ((x, _x), (w, _w), (to, _y)) = (x.device_ptr(&stream), w.device_ptr(&stream), y.device_ptr_mut(&stream));
        let bias = bias.as_ref().map(|bias| bias.device_ptr(&stream));
        if let Some((bias, _)) = &bias {
            product.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            product.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let (workspace, _workspace) = library.workspace.device_ptr(&stream);
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the layouts are those of the tensors, all contiguous; the factors are of the type that sums in f32
        // take them in. Calls of a stream follow each other, so that they can share a workspace.
        unsafe {
            let way = product.way(&library)?;
            lt::matmul(
                library.handle,
                product.description,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                w as *const _,
                product.layouts[0],
                x as *const _,
                product.layouts[1],
                to as *const _,
                product.layouts[2],
                to as *mut _,
                product.layouts[2],
                &raw const way.algo,
                workspace as *mut _,
                library.workspace.len(),
                stream.cu_stream().cast(),
            )
            .map_err(Error::wrap)?;
        }
        drop((_x, _w, _y, _workspace, bias));
        Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape))
    }
}

/// cuBLASLt on a device.
struct Library {
    handle: sys::cublasLtHandle_t,
    /// What NVIDIA recommends for Hopper; others take what they need of it.
    workspace: CudaSlice<u8>,
}

// SAFETY: NVIDIA's manual lets threads share a handle of cuBLASLt.
unsafe impl Send for Library {}
// SAFETY: the same.
unsafe impl Sync for Library {}

impl Library {
    const WORKSPACE_BYTES: usize = 32 << 20;

    /// Made once for each device, and kept.
    fn on(device: &CudaDevice) -> Result<Arc<Self>> {
        static MADE: Mutex<BTreeMap<usize, Arc<Library>>> = Mutex::new(BTreeMap::new());
        let DeviceLocation::Cuda { gpu_id } = device.location() else { bail!("linear: no GPU") };
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = made.get(&gpu_id) {
            return Ok(library.clone());
        }
        device.cuda_stream().context().bind_to_thread().w()?;
        // SAFETY: nobody reads the workspace before the library has written it.
        let workspace = unsafe { device.alloc::<u8>(Self::WORKSPACE_BYTES)? };
        let library = Arc::new(Library { handle: lt::create_handle().map_err(Error::wrap)?, workspace });
        made.insert(gpu_id, library.clone());
        Ok(library)
    }
}

/// What cuBLASLt is told of a product. It counts columns first: to it, x and y are transposed, and w has to be.
/// // y^T (out, n) = w (out, in) x^T (in, n)
struct Product {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3], // w, x, y
}

impl Product {
    fn new(outputs: usize, n: usize, inputs: usize) -> Result<Self> {
        use sys::cudaDataType::{CUDA_R_16BF, CUDA_R_32F};
        let description =
            lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F).map_err(Error::wrap)?;
        let mut product = Product { description, layouts: [std::ptr::null_mut(); 3] };
        let shapes = [(CUDA_R_16BF, inputs, outputs), (CUDA_R_16BF, inputs, n), (CUDA_R_32F, outputs, n)];
        for (layout, (kind, rows, columns)) in product.layouts.iter_mut().zip(shapes) {
            *layout = lt::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).map_err(Error::wrap)?;
        }
        let transposed = 1i32; // CUBLAS_OP_T
        product.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        Ok(product)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, to: &T) -> Result<()> {
        // SAFETY: every caller gives an attribute with a value of its type.
        unsafe { lt::set_matmul_desc_attribute(self.description, attribute, (&raw const *to).cast(), size_of::<T>()) }
            .map_err(Error::wrap)
    }

    /// The way that the library thinks fastest.
    fn way(&self, library: &Library) -> Result<sys::cublasLtMatmulHeuristicResult_t> {
        let preference = lt::create_matmul_pref().map_err(Error::wrap)?;
        let most = library.workspace.len();
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let [w, x, y] = self.layouts;
        // SAFETY: the attribute is a number of bytes; everything lives until it is destroyed here, or dropped.
        unsafe {
            let found =
                lt::set_matmul_pref_attribute(preference, attribute, (&raw const most).cast(), size_of::<usize>())
                    .and_then(|()| {
                        lt::get_matmul_algo_heuristic(library.handle, self.description, w, x, y, y, preference)
                    });
            lt::destroy_matmul_pref(preference).map_err(Error::wrap)?;
            found.map_err(Error::wrap)
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and used by nobody else. What cannot be destroyed is left.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = lt::destroy_matrix_layout(layout);
            }
            let _ = lt::destroy_matmul_desc(self.description);
        }
    }
}

//! The same operations on GPUs of NVIDIA's, Ampere and later.
//!
//! Kernels are CUDA C, compiled by NVRTC when one of their file is first called, for the GPU that is there: a build
//! needs no GPU, and none of these files a header. They compute in f32 what the loops beside them compute, in other
//! orders of sums; products of matrices take bf16 where that is asked for.
//!
//! `tests/cuda.rs` compiles all of them without a GPU, and compares them with their plain twins on one.
//! `tests/cuda_emulated.rs` compiles them as C++ and compares them on the CPU.

#![allow(unsafe_code)]

mod activation;
mod attention;
mod clock;
mod device;
mod linear;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{CudaStorage, Layout, Result, Shape, bail};

pub(crate) use activation::rounded_gelu;
pub(crate) use attention::{attention, has_attention, operands};
pub(crate) use clock::seconds_on;
pub use device::{free_bytes, open};
pub(crate) use linear::linear_bf16;

/// A file of kernels.
#[derive(Clone, Copy)]
pub(crate) struct File {
    name: &'static str,
    text: &'static str,
}

/// A block of threads for each row.
pub(crate) const ROWS: File = File { name: "rows.cu", text: include_str!("rows.cu") };
/// A thread for each number.
pub(crate) const ELEMENTS: File = File {
    name: "elements.cu",
    text: concat!(include_str!("ptx.cuh"), include_str!("warp.cuh"), include_str!("elements.cu")),
};
/// Attention on tensor cores.
pub(crate) const ATTENTION: File = File {
    name: "attention.cu",
    text: concat!(include_str!("ptx.cuh"), include_str!("warp.cuh"), include_str!("attention.cu")),
};

/// The same with what only Hopper has.
pub(crate) const ATTENTION_HOPPER: File = File {
    name: "attention_hopper.cu",
    text: concat!(
        include_str!("ptx.cuh"),
        include_str!("warp.cuh"),
        include_str!("hopper.cuh"),
        include_str!("attention_hopper.cu")
    ),
};

/// Compute capabilities that kernels are compiled for, ten times the number. A GPU takes the last one that is not
/// beyond its own.
pub const ARCHITECTURES: [u32; 3] = [80, 89, 90];

/// Compiles every file for a compute capability; needs NVRTC, but no GPU. Names and PTX.
pub fn compile_all(architecture: u32) -> Result<Vec<(&'static str, String)>> {
    let everywhere = [ROWS, ELEMENTS, ATTENTION].into_iter();
    let files = everywhere.chain((architecture == HOPPER).then_some(ATTENTION_HOPPER));
    files.map(|file| Ok((file.name, file.compiled(architecture)?))).collect()
}

/// The compute capability that `ATTENTION_HOPPER` is for, and nothing after it.
pub(crate) const HOPPER: u32 = 90;

impl File {
    fn compiled(self, architecture: u32) -> Result<String> {
        let own = if self.name == ATTENTION_HOPPER.name { "a" } else { "" };
        let options = CompileOptions {
            name: Some(self.name.to_string()),
            options: vec![format!("--gpu-architecture=sm_{architecture}{own}")],
            ..CompileOptions::default()
        };
        match compile_ptx_with_opts(self.text, options) {
            Ok(ptx) => Ok(ptx.to_src()),
            Err(e) => bail!("{}: NVRTC cannot compile it for sm_{architecture}: {e}", self.name),
        }
    }

    /// A kernel of the file, compiled once for each compute capability and loaded once for each device.
    pub(crate) fn kernel(self, name: &str, device: &CudaDevice) -> Result<CudaFunction> {
        type Compiled = BTreeMap<(&'static str, u32), Arc<str>>;
        static COMPILED: Mutex<Compiled> = Mutex::new(Compiled::new());
        let capability = capability(device)?;
        let Some(architecture) = ARCHITECTURES.into_iter().rfind(|architecture| *architecture <= capability) else {
            bail!("{name} needs compute capability 8.0 or later, this GPU has {}", f64::from(capability) / 10.0);
        };
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let ptx = match compiled.get(&(self.name, architecture)) {
            Some(ptx) => ptx.clone(),
            None => {
                let ptx: Arc<str> = self.compiled(architecture)?.into();
                compiled.insert((self.name, architecture), ptx.clone());
                ptx
            }
        };
        drop(compiled);
        Ok(device.get_or_load_custom_func(name, self.name, &ptx)?.into_cuda_function())
    }
}

/// Ten times the GPU's compute capability.
pub(crate) fn capability(device: &CudaDevice) -> Result<u32> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    Ok(10 * major.unsigned_abs() + minor.unsigned_abs())
}

/// Threads of a block in `rows.cu` and `elements.cu`.
const THREADS: u32 = 256;

/// A call of a kernel that takes where its result goes, then inputs of f32, sizes and numbers, in this order.
pub(crate) struct Call<'a> {
    pub file: File,
    pub name: &'static str,
    pub inputs: &'a [CudaView<'a, f32>],
    pub sizes: &'a [usize],
    pub numbers: &'a [f32],
}

impl Call<'_> {
    /// Runs it in so many blocks and gives its result, of f32.
    pub fn run(&self, blocks: usize, shape: &Shape, device: &CudaDevice) -> Result<CudaStorage> {
        self.run_as::<f32>(blocks, shape, device)
    }

    /// The same with a result of another type.
    pub fn run_as<T: CudaDType + DeviceRepr>(
        &self,
        blocks: usize,
        shape: &Shape,
        device: &CudaDevice,
    ) -> Result<CudaStorage> {
        // SAFETY: kernels write every number of their result and read none of it.
        let mut y = unsafe { device.alloc::<T>(shape.elem_count())? };
        if shape.elem_count() > 0 {
            let (kernel, stream) = (self.file.kernel(self.name, device)?, device.cuda_stream());
            let sizes: Vec<i64> = self.sizes.iter().map(|&size| size as i64).collect();
            let mut call = stream.launch_builder(&kernel);
            call.arg(&mut y);
            for input in self.inputs {
                call.arg(input);
            }
            for size in &sizes {
                call.arg(size);
            }
            for number in self.numbers {
                call.arg(number);
            }
            // SAFETY: every caller gives the arguments that the kernel declares and a grid that covers its result;
            // kernels compare their place with the sizes before they read or write, and callers have compared those
            // with the tensors.
            unsafe { call.launch(grid(blocks, THREADS)?) }.w()?;
        }
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }
}

/// Calls a kernel of `rows.cu` for every row of the first input; the others have its shape, or are vectors as long as a
/// row.
pub(crate) fn by_rows(
    name: &'static str,
    inputs: &[(&CudaStorage, &Layout)],
    numbers: &[f32],
) -> Result<(CudaStorage, Shape)> {
    let [(x, layout), others @ ..] = inputs else { bail!("{name}: nothing is given") };
    let shape = layout.shape().clone();
    let (count, dim) = (shape.elem_count(), shape.dims().last().copied().unwrap_or(1));
    if let Some((_, other)) = others.iter().find(|(_, other)| ![count, dim].contains(&other.shape().elem_count())) {
        bail!("{name}: rows of {dim}, beside them {:?}", other.shape());
    }
    let views = inputs.iter().map(|(storage, layout)| contiguous(storage, layout)).collect::<Result<Vec<_>>>()?;
    let call = Call { file: ROWS, name, inputs: &views, sizes: &[dim], numbers };
    Ok((call.run(count / dim.max(1), &shape, &x.device)?, shape))
}

/// So many blocks of so many threads.
fn grid(blocks: usize, threads: u32) -> Result<LaunchConfig> {
    let Ok(most @ ..=0x7fff_ffff) = u32::try_from(blocks) else { bail!("{blocks} blocks are more than a GPU takes") };
    Ok(LaunchConfig { grid_dim: (most, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 })
}

/// Blocks that give each of so many numbers a thread.
pub(crate) fn covering(numbers: usize) -> usize {
    numbers.div_ceil(THREADS as usize)
}

/// The numbers of a contiguous tensor.
pub(crate) fn contiguous<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((first, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous: {layout:?}") };
    Ok(storage.as_cuda_slice::<T>()?.slice(first..end))
}

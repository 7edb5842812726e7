//! Where tensors live, and in which number format weights are kept.

use std::fmt;
use std::str::FromStr;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result::device};
use candle_core::{DType, Device};

use navicache_models::{Level, Precision};

use crate::field::Field;
use crate::{Error, Result, machine};
use navicache_weights::Format;

/// The device that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA if this build has it and a GPU is there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA GPU, by ordinal.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Device {
            device: text.to_string(),
            reason: "expected auto, cpu, cuda, cuda:N or metal".to_string(),
        };
        match text.split_once(':') {
            None => match text {
                "auto" => Ok(DeviceChoice::Auto),
                "cpu" => Ok(DeviceChoice::Cpu),
                "cuda" => Ok(DeviceChoice::Cuda(0)),
                "metal" => Ok(DeviceChoice::Metal),
                _ => Err(unknown()),
            },
            Some(("cuda", ordinal)) => ordinal.parse().map(DeviceChoice::Cuda).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceChoice::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device, or says what is missing.
    pub fn open(self) -> Result<Device> {
        let missing = |reason: String| Error::Device { device: self.to_string(), reason };
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto => Ok(open_cuda(0).unwrap_or(Device::Cpu)),
            DeviceChoice::Cuda(ordinal) => open_cuda(ordinal).map_err(missing),
            DeviceChoice::Metal => Err(missing("not supported yet; the CPU is `device` cpu".to_string())),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_ordinal: usize) -> Result<Device, String> {
    Err("this build has no CUDA, a build with the feature cuda has; the CPU is `device` cpu".to_string())
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<Device, String> {
    let gpus = gpu_names()?;
    let Some(name) = gpus.get(ordinal) else {
        return Err(format!("this machine has {}, counted from cuda:0", gpus.len()));
    };
    let context = CudaContext::new(ordinal).map_err(of_driver)?;
    let (major, minor) = context.compute_capability().map_err(of_driver)?;
    if major < 8 {
        return Err(format!(
            "{name} has compute capability {major}.{minor}; kernels need 8.0 (Ampere), the first with bf16"
        ));
    }
    navicache_models::cuda::open(ordinal).map_err(|e| e.to_string())
}

/// The GPUs that the driver has, by name.
///
/// # Errors
///
/// The driver does not work, or has none.
#[cfg(feature = "cuda")]
pub fn gpus() -> Result<Vec<String>> {
    gpu_names().map_err(|reason| Error::Device { device: "cuda".to_string(), reason })
}

/// No context is made for any of them, which takes long.
#[cfg(feature = "cuda")]
fn gpu_names() -> Result<Vec<String>, String> {
    let count = CudaContext::device_count().map_err(of_driver)?;
    if count == 0 {
        return Err("the NVIDIA driver has no GPU".to_string());
    }
    let name = |ordinal| device::get(ordinal).and_then(device::get_name);
    (0..count).map(name).collect::<Result<_, _>>().map_err(of_driver)
}

#[cfg(feature = "cuda")]
fn of_driver(error: DriverError) -> String {
    format!("the NVIDIA driver says {error}")
}

/// Memory of a device that can be taken, in bytes, if it is known.
pub(crate) fn free_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => machine::available_memory_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => navicache_models::cuda::free_bytes(device).ok(),
        _ => None,
    }
}

/// Lower-case name of a device, as in reports.
pub(crate) fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_string(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// In which format matrices are kept, and which numbers are multiplied. Activations are kept in f32 and summed up in
/// f32 whatever the choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = Error, parse_err_fn = unknown_dtype)]
pub enum DtypeChoice {
    /// f32 for models under 1 GiB in f32; others as stored (on a GPU, bf16), and what is stored in bf16 or less is
    /// multiplied in bf16, as the published pipelines do.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16. Products and attention round what they multiply; so do the VAE's convolutions where that is faster.
    Bf16,
    /// 16-bit floats, multiplied in f32.
    F16,
}

/// Size in f32 under which weights are widened once at load instead of at every use.
const SMALL_BYTES: u64 = 1 << 30;

fn unknown_dtype(found: &str) -> Error {
    let known = <DtypeChoice as strum::VariantNames>::VARIANTS.join(", ");
    Error::Invalid { field: Field::Dtype, found: found.to_string(), expected: format!("expected one of {known}") }
}

impl DtypeChoice {
    /// The format for a model with so many parameters; `None` is as stored.
    pub fn for_parameters(self, parameters: u64) -> Option<DType> {
        match self {
            DtypeChoice::Auto => (parameters * 4 <= SMALL_BYTES).then_some(DType::F32),
            DtypeChoice::F32 => Some(DType::F32),
            DtypeChoice::Bf16 => Some(DType::BF16),
            DtypeChoice::F16 => Some(DType::F16),
        }
    }

    /// What is multiplied with matrices kept in `kept` (`None`: as stored) that are stored in `format`.
    pub fn precision(self, kept: Option<DType>, format: Option<Format>) -> Precision {
        let narrow = format.is_some_and(|format| format == Format::Bf16 || format.is_packed());
        match (self, kept) {
            (_, Some(DType::BF16)) => Precision::Bf16,
            // Where this machine has no fast products of bf16, rounding would cost digits and save nothing.
            (DtypeChoice::Auto, None) if narrow && Level::current().multiplies_bf16() => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

//! Where tensors live, and in which number format weights are kept.

use std::str::FromStr;

use candle_core::{DType, Device};

use navicache_models::Precision;

use crate::weights::Format;
use crate::{Error, Result};

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

impl DeviceChoice {
    /// Opens the device, or says what is missing.
    pub(crate) fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto => {
                let cuda = candle_core::utils::cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten();
                Ok(cuda.unwrap_or(Device::Cpu))
            }
            DeviceChoice::Cuda(ordinal) => {
                let device = format!("cuda:{ordinal}");
                if !candle_core::utils::cuda_is_available() {
                    let reason =
                        "this binary was built without CUDA; build it with --features cuda, or use --device cpu";
                    return Err(Error::Device { device, reason: reason.to_string() });
                }
                Device::new_cuda(ordinal).map_err(|e| Error::Device { device, reason: e.to_string() })
            }
            DeviceChoice::Metal => Err(Error::Device {
                device: "metal".to_string(),
                reason: "not supported yet; use --device cpu".to_string(),
            }),
        }
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

/// In which format matrices are kept, and which numbers are multiplied. On the CPU, activations are kept in f32 and summed up in f32
/// whatever the choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// f32 for models under 1 GiB in f32; others as stored, and what is stored in bf16 or less is multiplied in bf16, as the published
    /// pipelines do.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16. Products and attention round what they multiply.
    Bf16,
    /// 16-bit floats, multiplied in f32.
    F16,
}

/// Size in f32 under which weights are widened once at load instead of at every use.
const SMALL_BYTES: u64 = 1 << 30;

impl FromStr for DtypeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(DtypeChoice::Auto),
            "f32" => Ok(DtypeChoice::F32),
            "bf16" => Ok(DtypeChoice::Bf16),
            "f16" => Ok(DtypeChoice::F16),
            _ => Err(Error::Request {
                what: "--dtype",
                found: text.to_string(),
                expected: "expected auto, f32, bf16 or f16".to_string(),
            }),
        }
    }
}

impl DtypeChoice {
    /// The format for a model with so many parameters; `None` is as stored.
    pub(crate) fn for_parameters(self, parameters: u64) -> Option<DType> {
        match self {
            DtypeChoice::Auto => (parameters * 4 <= SMALL_BYTES).then_some(DType::F32),
            DtypeChoice::F32 => Some(DType::F32),
            DtypeChoice::Bf16 => Some(DType::BF16),
            DtypeChoice::F16 => Some(DType::F16),
        }
    }

    /// What is multiplied with matrices kept in `kept` (`None`: as stored) that are stored in `format`.
    pub(crate) fn precision(self, kept: Option<DType>, format: Option<Format>) -> Precision {
        let narrow = format.is_some_and(|format| format == Format::Bf16 || format.is_packed());
        match (self, kept) {
            (DtypeChoice::Bf16, _) => Precision::Bf16,
            (DtypeChoice::Auto, None) if narrow => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

//! Weights of LPIPS from files.

use std::path::PathBuf;

use candle_core::Device;
use navicache_metrics::Lpips;
use navicache_models::Weights;

use crate::Result;
use navicache_weights::Tensors;

/// Reads weights from one file or several, safetensors or PyTorch's: what `lpips.LPIPS(net="alex").state_dict()` holds;
/// or torchvision's `alexnet-owt-*.pth` and the `alex.pth` of the `lpips` package, version 0.1.
pub fn open_lpips(files: &[PathBuf]) -> Result<Lpips> {
    let tensors = Tensors::with_names(files, Lpips::canonical)?;
    Ok(Lpips::new(Weights::new(&tensors, &Device::Cpu, None))?)
}

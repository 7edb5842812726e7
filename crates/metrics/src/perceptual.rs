//! The network of LPIPS with its weights, and frames to tensors. The network itself is
//! `navicache_models::image::lpips`.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use navicache_models::{Error as ModelError, Weights, image::lpips};
use navicache_weights::Tensors;

use crate::{Error, Result};

/// The metric with its weights. Nothing is downloaded: they are AlexNet's, and 1,152 of the metric's authors.
#[derive(Debug, Clone)]
pub struct Lpips(lpips::Lpips);

impl Lpips {
    /// Reads weights from one file or several, safetensors or PyTorch's: what
    /// `lpips.LPIPS(net="alex").state_dict()` holds; or torchvision's `alexnet-owt-*.pth` and the `alex.pth` of the
    /// `lpips` package, version 0.1.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let tensors = Tensors::with_names(files, Lpips::canonical)?;
        Lpips::new(Weights::new(&tensors, &Device::Cpu, None))
    }

    /// From weights under the names that [`Lpips::canonical`] gives.
    pub fn new(weights: Weights) -> Result<Self> {
        lpips::Lpips::new(weights).map(Lpips).map_err(|error| match error {
            ModelError::MissingWeight { .. } | ModelError::WrongShape { .. } => Error::LpipsWeights {
                found: error.to_string(),
                expected: "expected AlexNet's and the linear layers': one file saved of lpips.LPIPS(net=\"alex\").state_dict(), or \
                           torchvision's alexnet-owt-*.pth and the lpips package's weights/v0.1/alex.pth, with a comma between them",
            },
            other => other.into(),
        })
    }

    /// The distance of a frame from its reference, both 8-bit RGB. // (height, width, 3)
    pub(crate) fn distance(&self, reference: &[u8], video: &[u8], width: usize, height: usize) -> Result<f64> {
        let tensor = |frame: &[u8]| {
            let values = frame.iter().map(|&v| v as f32 / 255.0 * 2.0 - 1.0).collect();
            let picture = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?;
            picture.permute((0, 3, 1, 2))?.contiguous()
        };
        let distance = self.0.forward(&tensor(reference)?, &tensor(video)?)?;
        let distance = distance.squeeze(0)?.to_scalar::<f32>()? as f64;
        distance.is_finite().then_some(distance).ok_or_else(|| Error::LpipsWeights {
            found: "with NaN or infinity".to_string(),
            expected: "expected finite ones, save or download them again",
        })
    }

    /// torchvision's name of a tensor of `lpips.LPIPS(net="alex").state_dict()`, of torchvision's `alexnet-owt-*.pth`
    /// or of the `lpips` package's `alex.pth`, version 0.1; `None` for what the metric does not use: the classifier,
    /// constants, and the linear layers' second names.
    pub fn canonical(name: &str) -> Option<String> {
        if let Some((_, rest)) = name.strip_prefix("net.slice").and_then(|rest| rest.split_once('.')) {
            return Some(format!("features.{rest}"));
        }
        if let Some((layer, "0.weight" | "1.weight")) = name.split_once(".model.")
            && layer.starts_with("lin")
            && !layer.contains('.')
        {
            return Some(format!("{layer}.model.1.weight")); // it is the first where there is no dropout before it
        }
        name.starts_with("features.").then(|| name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_packagings() {
        let name = |name: &str| Lpips::canonical(name).unwrap_or_default();
        assert_eq!(name("net.slice2.3.bias"), "features.3.bias");
        assert_eq!(name("features.10.weight"), "features.10.weight");
        assert_eq!(name("lin3.model.1.weight"), "lin3.model.1.weight");
        assert_eq!(name("lin3.model.0.weight"), "lin3.model.1.weight");
        for unused in ["lins.3.model.1.weight", "classifier.1.weight", "scaling_layer.shift"] {
            assert_eq!(Lpips::canonical(unused), None, "{unused}");
        }
    }
}

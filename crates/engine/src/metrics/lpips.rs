//! LPIPS of every frame: weights from files, frames to tensors. The network is `navicache_models::image::lpips`.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use navicache_models::{Error as ModelError, Weights, image::lpips};

use super::Frames;
use crate::weights::Tensors;
use crate::{Error, Result};

/// The metric with its weights. Nothing is downloaded: they are AlexNet's, and 1,152 of the metric's authors.
#[derive(Debug, Clone)]
pub struct Lpips(lpips::Lpips);

impl Lpips {
    /// Reads weights from one file or several, safetensors or PyTorch's: what `lpips.LPIPS(net="alex").state_dict()` holds; or
    /// torchvision's `alexnet-owt-*.pth` and the `alex.pth` of the `lpips` package, version 0.1.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let tensors = Tensors::with_names(files, canonical)?;
        let model = lpips::Lpips::new(Weights::new(&tensors, &Device::Cpu, None));
        model.map(Lpips).map_err(|error| match error {
            ModelError::MissingWeight { .. } | ModelError::WrongShape { .. } => Error::Request {
                what: "weights for LPIPS:",
                found: error.to_string(),
                expected: "expected AlexNet's and the linear layers': one file saved of lpips.LPIPS(net=\"alex\").state_dict(), or \
                           torchvision's alexnet-owt-*.pth and the lpips package's weights/v0.1/alex.pth, with a comma between them"
                    .to_string(),
            },
            other => other.into(),
        })
    }

    /// The distance of every frame from the reference's, 0 where they are equal: the mean of the map of distances (`spatial=True`).
    pub fn of_frames(&self, reference: Frames, video: Frames) -> Result<Vec<f64>> {
        reference.check_against(video)?;
        let tensor = |frame: &[u8]| {
            let values = frame.iter().map(|&v| v as f32 / 255.0 * 2.0 - 1.0).collect();
            let picture = Tensor::from_vec(values, (1, reference.height, reference.width, 3), &Device::Cpu)?;
            picture.permute((0, 3, 1, 2))?.contiguous()
        };
        let distance = |(a, b): (&[u8], &[u8])| {
            let distance = self.0.forward(&tensor(a)?, &tensor(b)?)?.squeeze(0)?.to_scalar::<f32>()? as f64;
            let what = "weights for LPIPS";
            let expected = || "expected finite ones, save or download them again".to_string();
            let not_finite =
                || Error::Request { what, found: "with NaN or infinity".to_string(), expected: expected() };
            distance.is_finite().then_some(distance).ok_or_else(not_finite)
        };
        reference.frames().zip(video.frames()).map(distance).collect()
    }
}

/// torchvision's name of a tensor of either file; `None` for what the metric does not use: the classifier, constants, and the linear
/// layers' second names.
fn canonical(name: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_packagings() {
        let name = |name: &str| canonical(name).unwrap_or_default();
        assert_eq!(name("net.slice2.3.bias"), "features.3.bias");
        assert_eq!(name("features.10.weight"), "features.10.weight");
        assert_eq!(name("lin3.model.1.weight"), "lin3.model.1.weight");
        assert_eq!(name("lin3.model.0.weight"), "lin3.model.1.weight");
        for unused in ["lins.3.model.1.weight", "classifier.1.weight", "scaling_layer.shift"] {
            assert_eq!(canonical(unused), None, "{unused}");
        }
    }
}

//! Latents in files, and from noise.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, noise};

/// Name of the tensor in a latents file.
const NAME: &str = "latents";
/// Name of the number of frames in its header.
const FRAMES: &str = "frames";

/// Standard normal latents of a shape, the same that the reference pipeline draws from a CPU generator with this seed.
pub(crate) fn from_seed(seed: u64, shape: &[usize; 5], device: &Device) -> Result<Tensor> {
    let values = noise::randn(seed, shape.iter().product());
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
}

/// What a latents file says of itself.
pub(crate) struct Saved {
    /// (1, channels, latent frames, height, width)
    pub shape: [usize; 5],
    /// Frames that it was made for.
    pub frames: Option<usize>,
}

/// Reads what a latents file says of itself.
pub(crate) fn saved(path: &Path) -> Result<Saved> {
    let (latents, frames) = read(path)?;
    let found = latents.dims();
    let shape = <[usize; 5]>::try_from(found)
        .map_err(|_| Error::file(path, format!("{NAME}: expected [1, c, f, h, w], found {found:?}")))?;
    Ok(Saved { shape, frames })
}

/// (1, channels, latent frames, height, width)
pub(crate) fn shape_of(latents: &Tensor) -> Result<[usize; 5]> {
    let (one, channels, frames, height, width) = latents.dims5()?;
    Ok([one, channels, frames, height, width])
}

/// Reads a latents file and checks its shape.
pub(crate) fn from_file(path: &Path, shape: &[usize; 5], device: &Device) -> Result<Tensor> {
    let (latents, _) = read(path)?;
    if latents.dims() != shape {
        let reason = format!(
            "{NAME}: expected {shape:?} (1, channels, latent frames, height, width) for this size and number of frames, \
             found {:?}",
            latents.dims()
        );
        return Err(Error::file(path, reason));
    }
    if !crate::denoise::arithmetic::is_finite(&latents)? {
        return Err(Error::file(path, format!("{NAME}: expected finite numbers, found NaN or infinity")));
    }
    Ok(latents.to_device(device)?)
}

fn read(path: &Path) -> Result<(Tensor, Option<usize>)> {
    let bytes = navicache_media::read_file(path)?;
    let wrong = |reason: String| Error::file(path, reason);
    let file =
        safetensors::SafeTensors::deserialize(&bytes).map_err(|e| wrong(format!("not a safetensors file ({e})")))?;
    let view = file.tensor(NAME).map_err(|_| wrong(format!("expected a tensor {NAME:?}, found {:?}", file.names())))?;
    if view.dtype() != safetensors::Dtype::F32 {
        return Err(wrong(format!("{NAME}: expected f32, found {:?}", view.dtype())));
    }
    let tensor = Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
    let frames = header.metadata().as_ref().and_then(|said| said.get(FRAMES)?.parse().ok());
    Ok((tensor, frames))
}

/// The numbers of a tensor as files have them, f32.
pub(crate) fn f32_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Writes latents of a video of so many frames, whole or not at all.
pub(crate) fn save(path: &Path, latents: &Tensor, frames: usize) -> Result<()> {
    let bytes = f32_bytes(latents)?;
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, latents.dims().to_vec(), &bytes)
        .map_err(|e| Error::file(path, e.to_string()))?;
    let file = safetensors::serialize([(NAME, view)], Some([(FRAMES.to_string(), frames.to_string())].into()))
        .map_err(|e| Error::file(path, e.to_string()))?;
    Ok(crate::WholeFile::create(path)?.finish_with(&file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip_and_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.safetensors");
        let shape = [1, 4, 2, 2, 3];
        let latents = from_seed(1, &shape, &Device::Cpu).unwrap();
        save(&path, &latents, 5).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&from_file(&path, &shape, &Device::Cpu).unwrap()), values(&latents));
        let Saved { shape: said, frames } = saved(&path).unwrap();
        assert_eq!((said, frames), (shape, Some(5)));

        let error = |shape| from_file(&path, &shape, &Device::Cpu).unwrap_err().to_string();
        assert!(error([1, 4, 2, 2, 4]).contains("found [1, 4, 2, 2, 3]"));
        save(&path, &(latents * f64::NAN).unwrap(), 5).unwrap();
        assert!(error(shape).contains("expected finite numbers"));
        std::fs::write(&path, b"not tensors").unwrap();
        assert!(error(shape).contains("not a safetensors file"));
    }
}

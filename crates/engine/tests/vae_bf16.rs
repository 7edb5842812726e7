//! What is lost of frames when a VAE's convolutions multiply bf16: they stay within 50 dB of PSNR. On any machine:
//! where none of its instructions multiply bf16, the same rounded numbers are multiplied in f32.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use navicache_engine::models::wan::{Vae, VaeConfig};
use navicache_engine::models::{Precision, Result, Source, Weights};
use navicache_engine::noise;
use navicache_engine::weights::Tensors;

/// The weights of the built-in model, or others of its shapes, drawn as PyTorch begins layers.
struct Drawn<'a> {
    files: &'a Tensors,
    seed: Option<u64>,
}

impl Source for Drawn<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files.shape(name)
    }

    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> Result<Tensor> {
        let stored = self.files.load(name, dtype, device)?;
        let Some(seed) = self.seed.filter(|_| !name.ends_with("gamma")) else { return Ok(stored) };
        let inputs: usize = stored.dims().iter().skip(1).product();
        let scale = 1.0 / (3.0 * inputs as f64).sqrt();
        let letters = name.bytes().fold(seed, |hash, letter| hash.wrapping_mul(31).wrapping_add(letter.into()));
        let values = noise::randn(letters, stored.elem_count());
        Ok((Tensor::from_vec(values, stored.dims(), device)? * scale)?.to_dtype(stored.dtype())?)
    }

    fn place(&self, name: &str) -> String {
        self.files.place(name)
    }
}

fn decoded(config: &VaeConfig, source: &Drawn, precision: Precision) -> Vec<f32> {
    let vae = Vae::new(config, Weights::new(source, &Device::Cpu, None).with_precision(precision)).unwrap();
    let shape = [1, config.z_dim, 2, 5, 6];
    let latents = Tensor::from_vec(noise::randn(7, shape.iter().product()), &shape, &Device::Cpu).unwrap();
    let mut decoding = vae.decoder(&latents).unwrap();
    let mut frames = Vec::new();
    while let Some(chunk) = decoding.next_chunk().unwrap() {
        frames.extend(chunk.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    frames
}

#[test]
fn frames_stay_within_50_db() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/vae");
    let config: VaeConfig = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let files = Tensors::open(&folder, "diffusion_pytorch_model").unwrap();
    for seed in [None, Some(1), Some(2)] {
        let source = Drawn { files: &files, seed };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| decoded(&config, &source, precision));
        assert_eq!(exact.len(), 5 * 3 * 40 * 48);
        // Both are in [-1, 1]: half as far apart in [0, 1].
        let errors = exact.iter().zip(&rounded).map(|(exact, rounded)| f64::from(exact - rounded).powi(2) / 4.0);
        let psnr = -10.0 * (errors.sum::<f64>() / exact.len() as f64).log10();
        println!("{seed:?}: {psnr:.1} dB");
        assert!(psnr.is_finite() && psnr >= 50.0, "{seed:?}: {psnr:.1} dB");
    }
}

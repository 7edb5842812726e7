//! HunyuanVideo (Tencent 2024, arXiv 2412.03603): the transformer that predicts a velocity, and the causal video
//! autoencoder.
//!
//! Names and arithmetic follow diffusers `HunyuanVideoTransformer3DModel` and `AutoencoderKLHunyuanVideo`.

mod config;
mod refiner;
mod transformer;
mod vae;

pub use config::{TransformerConfig, VaeConfig};
pub use transformer::{Cond, State, Transformer};
pub use vae::{Decoding, Tiles, Vae};

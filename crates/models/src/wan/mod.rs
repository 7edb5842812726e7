//! Wan2.1 and Wan2.2 TI2V (Wan team 2025, arXiv 2503.20314): the transformer that predicts a velocity, and the causal
//! video autoencoder.
//!
//! Names and arithmetic follow diffusers `WanTransformer3DModel` and `AutoencoderKLWan`.

mod config;
mod transformer;
mod vae;

pub use config::{AuthorsConfig, TransformerConfig, VaeConfig};
pub use transformer::{Cond, ImageCond, State, Transformer};
pub use vae::{Decoding, Encoding, LowerEncoding, UpperEncoding, Vae, VaeEncoder};

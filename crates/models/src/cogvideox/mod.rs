//! CogVideoX (Yang et al. 2024, arXiv 2408.06072): the expert transformer that predicts v, and the causal video
//! autoencoder.
//!
//! Names and arithmetic follow diffusers `CogVideoXTransformer3DModel` and `AutoencoderKLCogVideoX`.

mod config;
mod places;
mod transformer;
mod vae;

pub use config::{TransformerConfig, VaeConfig};
pub use transformer::{Cond, State, Transformer};
pub use vae::{Decoding, Vae, VaeEncoder};

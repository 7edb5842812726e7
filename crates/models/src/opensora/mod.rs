//! Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404): STDiT3, the transformer that predicts a velocity with attention
//! within frames and across them in turn, and an autoencoder of two, over time and over single frames.
//!
//! Names and arithmetic follow hpcaitech/Open-Sora v1.2, and diffusers `AutoencoderKL` for the autoencoder of frames.

mod config;
mod transformer;
mod vae;

pub use config::{FrameVaeConfig, TimeVaeConfig, TransformerConfig, VaeConfig};
pub use transformer::{Cond, State, Transformer, VideoSize};
pub use vae::{Decoding, Vae};

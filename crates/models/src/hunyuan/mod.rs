//! HunyuanVideo (Tencent 2024, arXiv 2412.03603): the transformer that predicts a velocity.
//!
//! Names and arithmetic follow diffusers `HunyuanVideoTransformer3DModel`.

mod config;
mod refiner;
mod transformer;

pub use config::TransformerConfig;
pub use transformer::{Cond, State, Transformer};

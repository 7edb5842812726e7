//! Text encoders.

pub mod clip;
pub mod llama;
pub mod umt5;

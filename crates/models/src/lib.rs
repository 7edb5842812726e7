//! Text and image encoders, video diffusion transformers and VAEs: tensors in, tensors out.
//!
//! Nothing here opens a file, knows a noise schedule or a guidance weight, or decides what to skip. A model is built
//! from a configuration and a [`Weights`] cursor, and the path of a weight in the file is the path of the field that
//! holds it.
#![warn(missing_docs)]

mod autoencoder;
mod branches;
pub mod cogvideox;
mod denoiser;
mod error;
pub mod hunyuan;
pub mod image;
pub mod keys;
pub mod nn;
pub mod opensora;
pub mod text;
pub mod tiling;
pub mod wan;
mod weights;

pub use autoencoder::{Autoencoder, Chunk, Chunks, DecodePlan, Room};
pub use branches::{Anatomy, Branches, Conditioned, ForwardPass};
pub use denoiser::{Denoiser, Features, Observed, Part, Signal, Unit};
pub use error::{Error, Result};
pub use keys::Configuration;
#[cfg(feature = "cuda")]
pub use navicache_kernels::cuda;
pub use navicache_kernels::{
    Choice, HugePages, LEVEL_VARIABLE, Level, Precision, Rows, choice, named_level, peak_flops, remember_in,
    seconds_on, wait_for, widen,
};
pub use weights::{Matrix, Packed, Source, Weights};

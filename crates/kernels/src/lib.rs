//! Fast operations on candle tensors, each with a plain reference beside it.
//!
//! Every operation is a `Kernel`: the same thing twice, as the simplest loop that computes it and as vector code that is
//! generic over the instruction set (`simd`). Which of the two runs, and for which instruction set, is a [`Level`], chosen when
//! the program runs. With the feature `cuda` there is a third, for GPUs (`cuda`). Tensors that none of this is for go to candle's own operations.
//!
//! Results depend on the level only: not on the number of threads, nor on what other rows a tensor has.

mod activation;
mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
mod exp;
mod level;
mod linear;
mod norm;
mod parallel;
mod residual;
mod rope;
mod simd;
mod softmax;
mod storage;
mod tile;

pub use activation::{gelu, silu};
pub use attention::attention;
pub use level::Level;
pub use linear::linear_bf16;
pub use norm::{layer_norm, modulated_layer_norm, rms_norm};
pub use residual::gated_residual;
pub use rope::rotate_pairs;
pub use softmax::softmax_last_dim;

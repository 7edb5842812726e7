//! Fast operations on candle tensors, each with a plain reference beside it.
//!
//! Every operation is a `Kernel`: the same thing twice, as the simplest loop that computes it and as vector code that
//! is generic over the instruction set (`simd`). Which of the two runs, and for which instruction set, is a [`Level`],
//! chosen by measurement when the program runs. With the feature `cuda` there is a third, for GPUs (`cuda`). Tensors
//! that none of this is for go to candle's own operations.
//!
//! Results depend on the level only: not on the number of threads, nor on what other rows a tensor has.

mod activation;
mod attention;
mod channel_norm;
mod clock;
mod convolution;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dispatch;
mod exp;
mod group_norm;
mod level;
mod linear;
mod matrix;
mod memory;
mod norm;
mod panel;
mod parallel;
mod peak;
mod precision;
mod quantized;
mod residual;
mod rope;
mod simd;
mod softmax;
mod storage;
mod tile;

pub use activation::{Activation, gelu, gelu_for_bf16, silu};
pub use attention::attention;
pub use channel_norm::channel_rms_norm;
pub use clock::{seconds_on, wait_for};
pub use convolution::{Convolution, Edge, Resize};
pub use dispatch::{Choice, VARIABLE as LEVEL_VARIABLE, choice, named_level, remember_in};
pub use group_norm::group_norm;
pub use level::Level;
pub use linear::{linear, linear_on_device};
pub use matrix::{Panels, Rows, dense};
pub use memory::HugePages;
pub use norm::{layer_norm, modulated_layer_norm, rms_norm};
pub use peak::peak_flops;
pub use precision::Precision;
pub use quantized::widen;
pub use residual::{gated_residual, residual};
pub use rope::rotate_pairs;
pub use softmax::softmax_last_dim;

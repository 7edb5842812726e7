//! Layers that the models share.

mod attention;
mod conv;
mod linear;
mod modulation;
mod norm;
mod patchify;
mod rope;
mod timestep;

pub use attention::{attention, causal_mask, split_heads};
pub use conv::{CausalConv3d, Conv2d, ConvState, Edge, Resize};
pub use linear::Linear;
pub use modulation::{Modulation, by_runs, gated_by_runs};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use patchify::{Grid, patchify, unpatchify};
pub use rope::Rope3d;
pub use timestep::sinusoid;

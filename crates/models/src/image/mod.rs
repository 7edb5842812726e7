//! Networks that see pictures: an encoder, and a measure of how much two differ.

pub mod clip;
pub mod lpips;

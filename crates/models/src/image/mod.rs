//! Image encoders.

pub mod clip;

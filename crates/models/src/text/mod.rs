//! Text encoders.

pub mod umt5;

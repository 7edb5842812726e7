//! Many generations: methods side by side ([`compare`]), videos for another's evaluation ([`vbench`]), timings
//! ([`bench`](mod@bench)).
#![warn(missing_docs)]

pub mod bench;
pub mod compare;
mod error;
pub mod vbench;

pub use error::{Error, Result};

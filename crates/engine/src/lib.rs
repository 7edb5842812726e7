//! The engine: loads a video diffusion pipeline, samples it under a cache policy, and hands back the video with a report of
//! what was computed and what it cost.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use navicache_engine::{Bundle, LoadOptions, Request, generate};
//!
//! # fn main() -> navicache_engine::Result<()> {
//! let bundle = Bundle::open("demo", &LoadOptions::default())?;
//! let request = Request::new("a red circle bouncing on a navy background");
//! let mut video = generate(&bundle, &request, &mut |_| ControlFlow::Continue(()))?;
//! video.save("out.mp4".as_ref())?;
//! # Ok(())
//! # }
//! ```
//!
//! The main flow is [`generate`]; read it first. Decisions come from `navicache-control`, tensors from `navicache-models`, and
//! this crate is the only one that knows both.
#![warn(missing_docs)]

pub mod bench;
mod bundle;
mod cache_file;
pub mod catalog;
pub mod compare;
mod decode;
mod demo;
mod device;
mod error;
pub mod estimate;
mod family;
mod generate;
pub mod hub;
pub mod inspect;
mod latents;
mod layout;
mod lpips;
mod machine;
mod measure;
pub mod noise;
mod prompt;
pub mod report;
mod request;
mod sampler;
mod scheduler;
mod scoped;
mod spectrum;
mod store;
mod tokenizer;
pub mod trace;
pub mod vbench;
pub mod weights;

/// Readers of untrusted bytes that have no other door; for the fuzz targets.
#[doc(hidden)]
pub mod parsers {
    pub use crate::tokenizer::encode_with as sentencepiece;
}

pub use bundle::{Bundle, LoadOptions};
pub use cache_file::{cache_argument, save_preset};
pub use decode::{Tiling, decode_latents};
#[cfg(feature = "cuda")]
pub use device::gpus;
pub use device::{DeviceChoice, DtypeChoice};
pub use error::{Error, Result};
pub use generate::{Event, Stage, Video, generate, generate_with};
pub use layout::Files;
pub use lpips::open_lpips;
pub use machine::use_threads;
pub use navicache_control as control;
pub use navicache_media::{Clip, Frames, Spec, WholeFile, video};
pub use navicache_metrics as metrics;
pub use navicache_models as models;
pub use report::Report;
pub use request::{Defaults, Request, Resolved};
pub use weights::Lora;

//! The engine: loads a video diffusion pipeline, samples it under a cache policy, and hands back the video with a
//! report of what was computed and what it cost.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use navicache_engine::{Pipeline, LoadOptions, Request, generate};
//!
//! # fn main() -> navicache_engine::Result<()> {
//! let pipeline = Pipeline::open("demo", &LoadOptions::default())?;
//! let request = Request::new("a red circle bouncing on a navy background");
//! let mut video = generate(&pipeline, &request, &mut |_| ControlFlow::Continue(()))?;
//! video.save("out.mp4".as_ref())?;
//! # Ok(())
//! # }
//! ```
//!
//! The main flow is [`generate`]; read it first. Decisions come from `navicache-control`, tensors from
//! `navicache-models`, and this crate is the only one that knows both.
#![warn(missing_docs)]

pub mod advice;
mod cache_file;
mod checkpoint;
pub mod convert;
mod decode;
mod demo;
mod denoise;
mod device;
mod draws;
mod error;
pub mod estimate;
mod event;
mod family;
mod field;
mod files;
mod film;
mod generate;
mod host;
pub mod inspect;
mod latents;
mod limits;
mod machine;
pub mod noise;
pub mod parts;
mod pipeline;
mod preview;
mod probe;
mod promise;
mod prompt;
pub mod report;
mod request;
mod scheduler;
mod size;
mod sizes;
mod target;
mod text_repair;
pub mod trace;

pub use cache_file::{cache_argument, preset, preset_from_json, save_preset};
pub use checkpoint::{Checkpoint, Every, Resume};
pub use decode::{decode, decode_latents};
pub use denoise::arithmetic::{mean_abs, weighted};
#[cfg(feature = "cuda")]
pub use device::gpus;
pub use device::{DeviceChoice, DtypeChoice};
pub use error::{Error, Kind, Lack, Result};
pub use event::{Event, Stage};
pub use field::Field;
pub use generate::{Video, check, generate, generate_to, generate_with, warm_up};
pub use host::share_of_memory;
pub use machine::{available_memory_bytes as machine_memory, cpu_name as machine_name, threads, use_threads};
pub use navicache_control as control;
pub use navicache_media::{Clip, Frames, Rate, Spec, WholeFile, video};
pub use navicache_models as models;
pub use navicache_replay as replay;
pub use navicache_weights::layout::Files;
pub use navicache_weights::{self as weights, Lora, catalog};
pub use pipeline::{LoadOptions, Pipeline};
pub use promise::{Promised, save_promise};
pub use report::Report;
pub use request::{Defaults, Request, Resolved, Tiling};
pub use size::{AspectRatio, Resolution, Size};
pub use target::{curve_of, reported as report_target, save_curve};

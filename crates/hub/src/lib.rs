//! Models from the Hugging Face hub, in the cache that its own tools use, so that what one downloaded the other finds:
//! `models--OWNER--NAME/{blobs,refs,snapshots}`.
//!
//! A file is written as `blobs/HASH.incomplete`, compared with its hash, and only then renamed; a snapshot's link to it
//! comes after, and the reference to the snapshot last. So whatever happens, nothing looks whole that is not, and what
//! is there is used again.
#![warn(missing_docs)]

mod client;
mod download;
mod error;
mod event;
mod pull;
mod remote;

pub use client::Hub;
pub use error::{Error, Result};
pub use event::Event;

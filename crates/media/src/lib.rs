//! Clips in and out (mp4, gif, png, y4m, safetensors), pictures in, and files that appear whole or not at all.
//!
//! ```no_run
//! use navicache_media::{Rate, video};
//!
//! # fn main() -> navicache_media::Result<()> {
//! let clip = video::read("in.y4m".as_ref())?;
//! clip.save("out.mp4".as_ref(), Rate::whole(16), video::Scale::NONE)?;
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod clip;
mod error;
mod fail_point;
mod input;
mod overwrite;
mod picture;
mod rate;
pub mod video;
mod whole_file;

pub use clip::{Clip, Frames, Spec};
pub use error::{Error, Result};
pub use fail_point::fail_point;
pub use input::{open_file, read_file, read_text};
pub use overwrite::overwritten;
pub use picture::{Filter, Largest, Picture};
pub use rate::Rate;
pub use whole_file::{WholeFile, draft_folder, folder_of, sync_folder};

//! Where weights come from: containers, number formats, and whose names the tensors have. Each container is read by one function
//! from bytes to a [`Listing`]; the names of every packaging become those of Diffusers.

mod file;
mod folder;
mod format;
mod gguf;
mod lora;
mod names;
mod pickle;
mod safetensors;
mod tensors;

pub use self::file::{Container, Listing, Meta, Stored, list, list_file};
pub(crate) use self::folder::Folder;
pub use self::format::Format;
pub use self::lora::Lora;
pub(crate) use self::lora::add as add_lora;
pub use self::names::{Component, Naming, Recognised, Role, recognise};
pub(crate) use self::tensors::{Found, shards};
pub use self::tensors::{Residence, Tensors};

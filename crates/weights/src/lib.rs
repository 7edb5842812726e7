//! Weights on disk -> named tensors: containers, number formats, whose names the tensors have, and which part of a
//! pipeline they are.
//!
//! Each container is read by one function from bytes to a [`Listing`]; the names of every packaging become those of
//! Diffusers, which the models are written in. [`layout`] finds the parts of a pipeline wherever they are.
#![warn(missing_docs)]

pub mod catalog;
mod change;
mod component;
mod container;
mod cut;
mod eight_bits;
mod entry;
mod error;
mod expert;
mod factors;
mod file;
mod fingerprint;
mod folder;
mod format;
mod found;
pub mod hub_cache;
pub mod layout;
mod lora;
mod matrix;
mod names;
mod shards;
mod tensors;
pub mod tokenizer;

pub use component::{Component, Naming, Role};
pub use container::{Container, ggml_kind, list, list_file, safetensors_dtype};
pub use cut::explain_cut_files;
pub use error::{Error, Result};
pub use expert::Expert;
pub use file::{Listing, Meta, Stored, WeightFile, read_description};
pub use fingerprint::{Fingerprint, sample};
pub use folder::Folder;
pub use format::Format;
pub use found::Found;
pub use lora::{LeftOut, Lora, add as add_lora};
pub use matrix::Residence;
pub use names::{Recognised, authors_name, recognise};
pub use tensors::Tensors;

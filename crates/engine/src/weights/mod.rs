//! Where weights come from. One reader a layout; each is a [`Source`](navicache_models::Source).

mod folder;
mod safetensors;

pub(crate) use self::folder::Folder;
pub use self::safetensors::SafetensorsFiles;

//! The models that a server offers. The server opens each on the CPU to understand requests; no weight is read for it.

use std::path::Path;

use navicache_engine::{DeviceChoice, LoadOptions, Pipeline};

use crate::Result;

/// A model by the name that clients know.
pub struct Model {
    /// Its name, without the folders of a path.
    pub name: String,
    /// As it is opened.
    pub place: String,
    pub pipeline: Pipeline,
}

/// The models of a server; the first is the default.
pub struct Models(Vec<Model>);

impl Models {
    /// Opens all of them.
    ///
    /// # Errors
    /// One of them is not there, or not whole.
    pub fn open(places: &[String], options: &LoadOptions) -> Result<Self> {
        let options = LoadOptions { device: DeviceChoice::Cpu, ..options.clone() };
        let open = |place: &String| {
            let pipeline = Pipeline::open(place, &options)?;
            let file = Path::new(place).file_name().map(|name| name.to_string_lossy().into_owned());
            let name = file.filter(|_| Path::new(place).exists()).unwrap_or_else(|| place.clone());
            Ok(Model { name, place: place.clone(), pipeline })
        };
        Ok(Models(places.iter().map(open).collect::<Result<_>>()?))
    }

    pub fn all(&self) -> &[Model] {
        &self.0
    }

    pub fn named(&self, name: &str) -> Option<&Model> {
        self.0.iter().find(|model| model.name == name)
    }

    /// The model that a request names, or the default; and what the user should know.
    pub fn asked(&self, name: Option<&str>) -> Option<(&Model, Option<String>)> {
        let first = self.0.first()?;
        match name {
            None => Some((first, None)),
            Some(sora) if sora.starts_with("sora-2") && self.named(sora).is_none() => {
                Some((first, Some(format!("`model` {sora} is not here; {} took its place", first.name))))
            }
            Some(name) => Some((self.named(name)?, None)),
        }
    }
}

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

/// By how much memory requests are judged, where it is not what is free here: this machine's says nothing of a GPU's,
/// and there the worker judges.
fn memory_of(worker: DeviceChoice) -> Option<u64> {
    const ANY: u64 = 1 << 50;
    match worker {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto | DeviceChoice::Cuda(_) | DeviceChoice::Metal => Some(ANY),
    }
}

/// The models of a server; the first is the default.
pub struct Models(Vec<Model>);

impl Models {
    /// Opens all of them, for a worker on the device of `options`.
    ///
    /// # Errors
    /// One of them is not there, or not whole.
    pub fn open(places: &[String], options: &LoadOptions) -> Result<Self> {
        let memory = options.memory.or_else(|| memory_of(options.device));
        let options = LoadOptions { device: DeviceChoice::Cpu, memory, ..options.clone() };
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

#[cfg(test)]
mod tests {
    use navicache_engine::{Request, check};

    use super::*;

    #[test]
    fn a_request_is_judged_by_memory_that_its_worker_has() {
        let reason = |device, memory| {
            let options = LoadOptions { device, memory, ..LoadOptions::default() };
            let models = Models::open(&["demo".to_string()], &options).unwrap();
            check(&models.all()[0].pipeline, &Request::new("x")).err().map(|error| error.to_string())
        };
        assert!(reason(DeviceChoice::Cpu, Some(1024)).unwrap().contains("1.0 KiB are free"));
        assert!(reason(DeviceChoice::Cuda(0), Some(1024)).unwrap().contains("1.0 KiB are free"));
        assert_eq!((reason(DeviceChoice::Cpu, None), reason(DeviceChoice::Cuda(0), None)), (None, None));
        assert!(memory_of(DeviceChoice::Cuda(0)) > Some(1 << 40), "this machine's is not the GPU's");
    }
}

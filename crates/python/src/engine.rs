//! The engine: models opened, requests and what they will take. Requests and answers are JSON, as everywhere.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use bytesize::ByteSize;
use navicache_engine::control::cache::{CacheConfig, CacheSpec};
use navicache_engine::weights::hub_cache::HubCache;
use navicache_engine::{
    DeviceChoice, DtypeChoice, Error, Files, LoadOptions, Lora, Request, cache_argument, catalog, estimate,
    preset_from_json,
};
use pyo3::prelude::*;
use serde_json::{Map, Value, json};

use crate::errors::{Failure, detached};
use crate::job::Job;

/// An open model. Generations of several threads take turns.
#[pyclass(frozen, module = "navicache._core")]
pub struct Pipeline {
    opened: Arc<navicache_engine::Pipeline>,
    turn: Arc<Mutex<()>>,
}

#[pymethods]
impl Pipeline {
    /// Opens a model: see [`navicache_engine::Pipeline::open`].
    #[new]
    #[pyo3(signature = (
        model, *, device=None, dtype=None, memory=None, loras=Vec::new(), transformer=None, transformer_2=None,
        text_encoder=None, text_encoder_2=None, vae=None, image_encoder=None, tokenizer=None, tokenizer_2=None
    ))]
    #[allow(clippy::too_many_arguments)] // they are keywords
    fn new(
        py: Python<'_>,
        model: PathBuf,
        device: Option<&str>,
        dtype: Option<&str>,
        memory: Option<Bytes>,
        loras: Vec<Added>,
        transformer: Option<PathBuf>,
        transformer_2: Option<PathBuf>,
        text_encoder: Option<PathBuf>,
        text_encoder_2: Option<PathBuf>,
        vae: Option<PathBuf>,
        image_encoder: Option<PathBuf>,
        tokenizer: Option<PathBuf>,
        tokenizer_2: Option<PathBuf>,
    ) -> PyResult<Self> {
        let files = Files {
            transformer,
            transformer_2,
            text_encoder,
            text_encoder_2,
            vae,
            image_encoder,
            tokenizer,
            tokenizer_2,
        };
        detached(py, || {
            let options = LoadOptions {
                device: parsed::<DeviceChoice>(device)?.unwrap_or_default(),
                dtype: parsed::<DtypeChoice>(dtype)?.unwrap_or_default(),
                files,
                loras: loras.into_iter().map(Added::lora).collect::<Result<_, _>>()?,
                memory: memory.map(Bytes::number).transpose()?,
            };
            let opened = Arc::new(navicache_engine::Pipeline::open(&model.to_string_lossy(), &options)?);
            Ok(Pipeline { opened, turn: Arc::default() })
        })
    }

    /// Name or path, as it was opened.
    #[getter]
    fn name(&self) -> &str {
        self.opened.name()
    }

    /// What a request leaves open.
    fn defaults(&self) -> String {
        json!(self.opened.defaults()).to_string()
    }

    /// Where it runs.
    fn machine(&self) -> String {
        json!(self.opened.machine()).to_string()
    }

    /// A request with every default filled in.
    fn resolve(&self, py: Python<'_>, request: &str) -> PyResult<String> {
        detached(py, || Ok(json!(self.opened.resolve(&read_request(request)?)?).to_string()))
    }

    /// What a request will take.
    fn estimate(&self, py: Python<'_>, request: &str) -> PyResult<String> {
        detached(py, || {
            let _turn = self.turn.lock();
            Ok(json!(estimate::estimate(&self.opened, &read_request(request)?)?).to_string())
        })
    }

    /// Begins a generation on a thread of its own; the video is written to `output`, if that is given.
    #[pyo3(signature = (request, output=None))]
    fn start(&self, py: Python<'_>, request: &str, output: Option<PathBuf>) -> PyResult<Job> {
        let (opened, turn) = (Arc::clone(&self.opened), Arc::clone(&self.turn));
        let request = detached(py, || read_request(request))?;
        Job::start(opened, turn, request, output).map_err(|failure| failure.raised(py))
    }
}

impl Pipeline {
    /// The model, and whose turn it is.
    pub fn shared(&self) -> (Arc<navicache_engine::Pipeline>, Arc<Mutex<()>>) {
        (Arc::clone(&self.opened), Arc::clone(&self.turn))
    }
}

/// The number of bytes that `memory` stands for.
#[pyfunction]
pub fn bytes_of(py: Python<'_>, memory: Bytes) -> PyResult<u64> {
    memory.number().map_err(|failure| failure.raised(py))
}

/// A number of bytes, or a text such as `12GiB`.
#[derive(FromPyObject)]
pub enum Bytes {
    /// As it is.
    Number(u64),
    /// With a unit.
    Text(String),
}

impl Bytes {
    fn number(self) -> Result<u64, Failure> {
        match self {
            Bytes::Number(bytes) => Ok(bytes),
            Bytes::Text(text) => text.parse().map(|size: ByteSize| size.as_u64()).map_err(|_| {
                Failure::invalid(format!("memory {text:?}: expected a size, as in 500MB or 2GiB, or a number of bytes"))
            }),
        }
    }
}

/// A LoRA: `FILE:WEIGHT`, or a pair of them.
#[derive(FromPyObject)]
enum Added {
    Pair(PathBuf, f64),
    Text(PathBuf),
}

impl Added {
    fn lora(self) -> Result<Lora, Failure> {
        match self {
            Added::Pair(path, weight) => Ok(Lora { path, weight, expert: None }),
            Added::Text(text) => Ok(text.to_string_lossy().parse::<Lora>().map_err(Error::from)?),
        }
    }
}

fn parsed<T: FromStr<Err: Into<Error>>>(text: Option<&str>) -> Result<Option<T>, Failure> {
    Ok(text.map(|text| text.parse::<T>().map_err(Into::into)).transpose()?)
}

/// A request as Python gives it. What `cache` may be beside a text: a preset, or a method with its options.
pub fn read_request(text: &str) -> Result<Request, Failure> {
    let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(Failure::invalid)?;
    let cache = fields.remove("cache").filter(|cache| !cache.is_null());
    let request: Request = serde_json::from_value(Value::Object(fields)).map_err(Failure::invalid)?;
    Ok(Request { cache: cache.map(read_cache).transpose()?, ..request })
}

/// The text of `--cache`, a preset, or a method with its options.
pub fn read_cache(cache: Value) -> Result<CacheSpec, Failure> {
    match cache {
        Value::String(text) => Ok(cache_argument(&text)?),
        Value::Object(fields) => {
            preset_from_json(fields).map_err(|reason| Failure::invalid(format!("`cache` {reason}")))
        }
        other => Err(Failure::invalid(format!("`cache` {other}: expected a text or an object"))),
    }
}

/// The names of all fields of a request.
#[pyfunction]
pub fn request_fields() -> Vec<String> {
    let fields = json!(Request::default());
    fields.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
}

/// The models that are known by name, and where they are.
#[pyfunction]
pub fn models(py: Python<'_>) -> PyResult<String> {
    detached(py, || {
        let cache = HubCache::from_env().map_err(Error::from)?;
        Ok(Value::from_iter(catalog::models().iter().map(|model| model.to_json(&cache))).to_string())
    })
}

/// Every cache method with its options and presets.
#[pyfunction]
pub fn methods() -> String {
    Value::from_iter(CacheConfig::METHODS.iter().map(CacheConfig::describe)).to_string()
}

/// What a file or folder of weights is.
#[pyfunction]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    detached(py, || Ok(json!(navicache_engine::inspect::inspect(&path.to_string_lossy())?).to_string()))
}

/// Takes so many threads to compute with, all of them for `None`. Once in a process, before anything is computed.
#[pyfunction]
#[pyo3(signature = (threads=None))]
pub fn use_threads(py: Python<'_>, threads: Option<usize>) -> PyResult<()> {
    detached(py, || Ok(navicache_engine::use_threads(threads)?))
}

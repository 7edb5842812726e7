//! What a file or folder of weights is, and what it lacks to be run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::field::Field;
use crate::pipeline::located;
use crate::{Error, Result, demo, family};
use navicache_weights::layout::{Base, Files, Parts, groups};
use navicache_weights::{Component, Found, list_file};

/// What was found at a path.
#[derive(Debug, Clone, Serialize)]
pub struct Inspected {
    /// The path.
    pub path: PathBuf,
    /// `Diffusers folder`, `folder` or `file`.
    pub layout: &'static str,
    /// Sets of weights in it, each in one file or in shards.
    pub weights: Vec<Weights>,
    /// What a generation still needs, and how to give it; empty: it can be run.
    pub missing: Vec<String>,
    /// Why it cannot be read as a pipeline, where that is not for something missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the user should know of what was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A set of weights.
#[derive(Debug, Clone, Serialize)]
pub struct Weights {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// What it is, in words; or why that cannot be said.
    pub what: String,
    /// The part of a pipeline that it is.
    #[serde(skip)]
    pub component: Option<Component>,
    /// safetensors, PyTorch or GGUF.
    pub container: String,
    /// Whose names the tensors have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub naming: Option<String>,
    /// What the user should know of how they are read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of scalars.
    pub parameters: u64,
    /// Scalars by number format.
    pub formats: BTreeMap<String, u64>,
    /// Every tensor, by the names in the files.
    pub tensors: Vec<TensorInfo>,
}

/// A tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub format: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Looks at a file, a folder, or a model by its name. Nothing but lists of tensors and configurations is read.
pub fn inspect(model: &str) -> Result<Inspected> {
    if model == demo::NAME {
        return Err(Error::Invalid {
            field: Field::Model,
            found: model.to_string(),
            expected: "it is built in; expected a file or a folder".to_string(),
        });
    }
    let paths = located(model)?;
    let path = paths[0].clone();
    let mut weights = Vec::new();
    for path in &paths {
        for files in groups(path)? {
            weights.push(set_of(files, path.is_file())?);
        }
    }
    let base = Base::of(paths);
    let layout = match &base {
        Base::Diffusers(_) => "Diffusers folder",
        Base::Loose(_) if path.is_dir() => "folder",
        Base::Loose(_) => "file",
    };
    let (missing, warnings, problem) =
        match Parts::gather(Some(base), &Files::default()).map_err(Error::from).and_then(family::read) {
            Ok(pieces) => (pieces.missing(), pieces.warnings(), None),
            Err(error) => (Vec::new(), Vec::new(), Some(error.to_string())),
        };
    Ok(Inspected { path, layout, weights, missing, problem, warnings })
}

/// `alone`: the one file that was asked for; what is wrong with it is the answer.
fn set_of(files: Vec<PathBuf>, alone: bool) -> Result<Weights> {
    let mut container = String::new();
    let mut tensors = Vec::new();
    let (mut bytes, mut parameters) = (0, 0);
    let mut formats: BTreeMap<String, u64> = BTreeMap::new();
    for file in &files {
        bytes += std::fs::metadata(file).map_err(Error::io(file))?.len();
        let (kind, listing) = match list_file(file) {
            Ok(listed) => listed,
            Err(error) if alone => return Err(error.into()),
            Err(error) => return Ok(Weights { what: error.to_string(), ..Weights::unknown(files.clone(), bytes) }),
        };
        container = kind.to_string();
        for (name, stored) in listing.tensors {
            parameters += stored.numbers() as u64;
            *formats.entry(stored.format.to_string()).or_default() += stored.numbers() as u64;
            tensors.push(TensorInfo { name, format: stored.format.to_string(), shape: stored.shape });
        }
    }
    let mut found = Weights { container, parameters, formats, tensors, ..Weights::unknown(files, bytes) };
    match Found::open(&found.files) {
        Ok(Found { recognised, tensors, .. }) => {
            found.what = recognised.component.to_string();
            found.component = Some(recognised.component);
            found.naming = Some(recognised.naming.to_string());
            found.notes = tensors.notes().to_vec();
        }
        Err(error) => found.what = error.to_string(),
    }
    Ok(found)
}

impl Weights {
    /// Files of which nothing is known but their size.
    fn unknown(files: Vec<PathBuf>, bytes: u64) -> Self {
        Weights {
            files,
            what: String::new(),
            component: None,
            container: "unknown".to_string(),
            naming: None,
            notes: Vec::new(),
            bytes,
            parameters: 0,
            formats: BTreeMap::new(),
            tensors: Vec::new(),
        }
    }
}

//! The parts of a pipeline, wherever they were found: a Diffusers folder, a folder or files of any other packaging,
//! recognised by what is in them. What a family makes of them it says itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use navicache_models::Configuration;
use navicache_models::keys::{self, Described};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::component::{Component, Role};
use crate::error::{Error, Result};
use crate::expert::Expert;
use crate::folder::Folder;
use crate::found::Found;
use crate::shards::group_of;
use crate::tensors::Tensors;
use crate::tokenizer;

pub use crate::shards::groups;

/// Files that take the place of a pipeline's own, or make one up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Files {
    /// The transformer.
    pub transformer: Option<PathBuf>,
    /// The second transformer, where there are two.
    pub transformer_2: Option<PathBuf>,
    /// The text encoder.
    pub text_encoder: Option<PathBuf>,
    /// The second text encoder, where there are two.
    pub text_encoder_2: Option<PathBuf>,
    /// The VAE.
    pub vae: Option<PathBuf>,
    /// The image encoder.
    pub image_encoder: Option<PathBuf>,
    /// `tokenizer.json` or `spiece.model`.
    pub tokenizer: Option<PathBuf>,
    /// That of the second text encoder.
    pub tokenizer_2: Option<PathBuf>,
}

impl Files {
    /// The weights among them.
    fn weights(&self) -> impl Iterator<Item = (Role, &PathBuf)> {
        [
            (Role::Transformer, &self.transformer),
            (Role::SecondTransformer, &self.transformer_2),
            (Role::TextEncoder, &self.text_encoder),
            (Role::SecondTextEncoder, &self.text_encoder_2),
            (Role::Vae, &self.vae),
            (Role::ImageEncoder, &self.image_encoder),
        ]
        .into_iter()
        .filter_map(|(role, path)| Some((role, path.as_ref()?)))
    }
}

/// A component's configuration and weights.
pub struct Piece<C> {
    /// What its shapes do not say.
    pub config: C,
    /// Its weights.
    pub tensors: Tensors,
}

/// What was found at a place and in files that were given apart. It is known what every set of weights is, no more.
#[derive(Default)]
pub struct Parts {
    /// The Diffusers folder, whose own parts are not among those found.
    pub folder: Option<Folder>,
    /// Other folders that were searched.
    pub searched: Vec<PathBuf>,
    /// Weights by what they are for.
    pub found: BTreeMap<Role, Found>,
    /// Which of them were given apart.
    pub given: BTreeSet<Role>,
    /// Files that hold no part of a pipeline, and why.
    pub unknown: Vec<String>,
    /// Tokenizers that were given apart: of the text encoder, and of the second one.
    pub tokenizers: [Option<Tokenizer>; 2],
    /// What the user should know of what was found.
    pub notes: Vec<String>,
}

impl Parts {
    /// Looks at a place and at what is given apart.
    pub fn gather(base: Option<Base>, files: &Files) -> Result<Self> {
        let mut parts = match base {
            Some(Base::Diffusers(folder)) => Parts { folder: Some(folder), ..Parts::default() },
            Some(Base::Loose(paths)) => Parts::loose(paths, files)?,
            None => Parts::default(),
        };
        for (role, path) in files.weights() {
            let found = Found::open(&group_of(path)?)?;
            // Where its name says nothing, the option does.
            let is_second = role == Role::SecondTransformer && Expert::of_path(&found.file.path).is_none();
            let found = if is_second { found.into_low_noise() } else { found };
            parts.given.insert(role);
            parts.found.insert(role, found);
        }
        for (place, path) in parts.tokenizers.iter_mut().zip([&files.tokenizer, &files.tokenizer_2]) {
            *place = path.as_ref().map(|path| tokenizer::from_file(path)).transpose()?;
        }
        let mut beside: BTreeMap<&Path, Vec<Component>> = BTreeMap::new();
        for found in parts.found.values() {
            beside.entry(folder_of(&found.file.path)).or_default().push(found.recognised.component);
        }
        for (folder, components) in beside {
            parts.notes.extend(stranger(folder, &components)?);
        }
        Ok(parts)
    }

    /// Reads loose weight files, and those in folders, by their contents.
    fn loose(paths: Vec<PathBuf>, files: &Files) -> Result<Self> {
        let mut parts = Parts::default();
        let mut from: BTreeMap<Role, PathBuf> = BTreeMap::new();
        for path in &paths {
            for group in groups(path)? {
                let found = match Found::open(&group) {
                    Ok(found) => found,
                    Err(error) if path.is_file() => return Err(error),
                    Err(error) => {
                        parts.unknown.push(error.to_string());
                        continue;
                    }
                };
                let (component, role) = (found.recognised.component, found.recognised.component.role());
                if files.weights().any(|(given, _)| given == role) {
                    continue;
                }
                if let Some(other) = from.insert(role, group[0].clone()) {
                    let reason = format!(
                        "{component} is in {} and in {}; say which with `{}`",
                        other.display(),
                        group[0].display(),
                        role.field()
                    );
                    return Err(Error::file(path, reason));
                }
                parts.found.insert(role, found);
            }
        }
        if from.is_empty() && *files == Files::default() {
            let place = paths.first().cloned().unwrap_or_default();
            let found = if parts.unknown.is_empty() { "no weight file".to_string() } else { parts.unknown.join("; ") };
            return Err(Error::file(place, format!("expected a Diffusers folder or weight files, found {found}")));
        }
        parts.searched = paths.into_iter().filter(|path| path.is_dir()).collect();
        Ok(parts)
    }

    /// A component of the Diffusers folder, unless it was given apart. Its configuration speaks of all of its weights.
    pub fn piece<C: Clone + Configuration>(
        &self,
        folder: &Folder,
        (name, stem): (&str, &str),
        component: Component,
        config: &C,
    ) -> Result<Option<Piece<C>>> {
        if self.found.contains_key(&component.role()) {
            return Ok(None);
        }
        let tensors = folder.tensors(name, stem, component)?;
        config.agree(&tensors).map_err(|e| Error::file(folder.path(name), e.to_string()))?;
        Ok(Some(Piece { config: config.clone(), tensors }))
    }

    /// A tokenizer of the Diffusers folder, unless it was given apart: the first of some files.
    pub fn tokenizer_of(&self, folder: &Folder, index: usize, files: &[&str]) -> Result<Option<Tokenizer>> {
        if self.tokenizers[index].is_some() {
            return Ok(None);
        }
        let file = files.iter().find(|file| folder.contains(file)).or(files.first()).copied().unwrap_or_default();
        let read = tokenizer::from_bytes(&folder.bytes(file)?);
        read.map(Some).map_err(|reason| Error::file(folder.path(file), reason))
    }
}

/// A file that says what shapes of weights do not.
const CONFIG: &str = "config.json";

/// The `config.json` beside weights, where it calls what it describes by this name and fits them. What it says that was
/// not used is added to the notes.
pub fn config_beside<C: Configuration + DeserializeOwned>(
    found: &Found,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<Option<C>> {
    let folder = Folder::Disk(folder_of(&found.file.path).to_path_buf());
    if !folder.contains(CONFIG) {
        return Ok(None);
    }
    let mut json: Value = folder.json(CONFIG)?;
    if json[C::NAMED_BY].as_str() != Some(name) {
        return Ok(None); // of another part, or named in the notes of `Parts::gather`
    }
    // Both halves of a whole CLIP.
    if name == "clip" {
        json = json["text_config"].take();
    }
    let path = folder.path(CONFIG);
    let config: C = described(&path, json, notes)?;
    if !config.fits(&found.tensors) {
        notes.push(format!(
            "{}: not used, for it is of another size than {}",
            path.display(),
            found.file.path.display()
        ));
        return Ok(None);
    }
    config.agree(&found.tensors).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(Some(config))
}

/// What stands beside the transformer in the authors' repositories of Wan, where `config.json` is of the transformer.
const BESIDE_WAN_MODEL: [Component; 3] = [Component::Umt5, Component::WanVae, Component::ClipVision];

/// What a `config.json` beside some weights describes, where that is none of them.
fn stranger(folder: &Path, components: &[Component]) -> Result<Option<String>> {
    let folder = Folder::Disk(folder.to_path_buf());
    if !folder.contains(CONFIG) {
        return Ok(None);
    }
    let json: Value = folder.json(CONFIG)?;
    let names = ["_class_name", "model_type"].map(|key| json[key].as_str());
    let is_ours = |name: &str| components.iter().any(|component| component.described().contains(&name));
    if names.into_iter().flatten().any(is_ours) || json.as_object().is_some_and(|fields| fields.is_empty()) {
        return Ok(None);
    }
    if names[0] == Some("WanModel") && components.iter().all(|component| BESIDE_WAN_MODEL.contains(component)) {
        return Ok(None);
    }
    let name = names.into_iter().flatten().next().unwrap_or("something that it does not name");
    let parts: Vec<String> = components.iter().map(|component| component.to_string()).collect();
    let path = folder.path(CONFIG);
    Ok(Some(format!("{}: not used, for it describes {name}, and beside it is {}", path.display(), parts.join(", "))))
}

/// The folder that holds a path.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The reason that a pipeline is not whole.
pub fn incomplete(place: &str, missing: &[String], unknown: &[String]) -> Error {
    let others = match unknown.is_empty() {
        true => String::new(),
        false => format!(". Not used: {}", unknown.join("; ")),
    };
    let reason = format!(
        "not all of a pipeline; missing: {}; or give the folder of a whole one with `model`{others}",
        missing.join(", ")
    );
    Error::file(place, reason)
}

/// What is missing of a list: what it is, and how to give it.
pub fn missing<const N: usize>(parts: [(bool, &str); N]) -> Vec<String> {
    parts.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what.to_string()).collect()
}

/// What a model is opened from.
pub enum Base {
    /// A Diffusers folder.
    Diffusers(Folder),
    /// Weight files of any packaging.
    Loose(Vec<PathBuf>),
}

impl Base {
    /// Looks at paths.
    pub fn of(paths: Vec<PathBuf>) -> Self {
        match &paths[..] {
            [path] if path.join(INDEX).exists() => Base::Diffusers(Folder::Disk(path.clone())),
            _ => Base::Loose(paths),
        }
    }
}

/// The file that makes a folder a Diffusers pipeline.
pub const INDEX: &str = "model_index.json";
/// Optional file of a pipeline's own defaults, beside `model_index.json`.
pub const DEFAULTS_FILE: &str = "navicache.json";

/// A component's `config.json`, which has to call what it describes by this name. What it says that is not known here
/// is added to the notes.
pub fn config<C: Configuration + DeserializeOwned>(
    folder: &Folder,
    component: &str,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<C> {
    let file = format!("{component}/{CONFIG}");
    let (json, path): (Value, PathBuf) = (folder.json(&file)?, folder.path(&file));
    // That comes first: fields of another model's make no sense.
    match json[C::NAMED_BY].as_str().unwrap_or("nothing") {
        found if found == name => described(&path, json, notes),
        found => Err(Error::file(path, format!("{}: expected {name}, found {found}", C::NAMED_BY))),
    }
}

/// What a file says. Keys that nobody knows here are added to the notes.
fn described<C: Configuration + DeserializeOwned>(path: &Path, json: Value, notes: &mut Vec<String>) -> Result<C> {
    let Described { config, unknown } = keys::read(json).map_err(|reason| Error::file(path, reason))?;
    if !unknown.is_empty() {
        notes.push(format!("{}: not known here, and not used: {}", path.display(), unknown.join(", ")));
    }
    Ok(config)
}

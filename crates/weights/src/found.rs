//! A component as it was found: recognised, its 8-bit weights scaled, its tensors under canonical names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::component::{Component, Role};
use crate::container::{self, Container};
use crate::eight_bits::{self, check_header};
use crate::entry::{Entry, add};
use crate::error::{Error, Result};
use crate::expert::Expert;
use crate::file::{Listing, Meta, Stored, WeightFile};
use crate::format::Format;
use crate::names::reads::{Reads, Use};
use crate::names::variants::by_channels;
use crate::names::wrapping::without_wrappers;
use crate::names::{Recognised, recognise};
use crate::shards::factor_map;
use crate::tensors::Tensors;

/// A component as it was found: its tensors under canonical names, and what its files said.
pub struct Found {
    /// What it is.
    pub recognised: Recognised,
    /// Its tensors.
    pub tensors: Tensors,
    /// The first file's; texts in it are read from `file`.
    pub metadata: BTreeMap<String, Meta>,
    /// The first file.
    pub file: Arc<WeightFile>,
}

impl Found {
    /// Opens a component from its files, whatever container and names they have. Every tensor has a use, or is known to
    /// have none.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut notes = Vec::new();
        let mut first = None;
        for path in paths {
            let file = WeightFile::map(path)?;
            let wrong = |reason: String| Error::file(path, reason);
            let (container, listing) = container::open(&file)?;
            let Listing { tensors: mut listed, metadata, notes: said } = listing;
            check_header(&metadata).map_err(wrong)?;
            unfold(&mut listed, &metadata);
            let factors = paths.iter().any(|of| factor_map(of).as_ref() == Some(path));
            let listed = listed.into_iter().map(|(name, stored)| match factors {
                true => (format!("{name}.{FACTOR}"), stored),
                false => (without_wrappers(&name).into_owned(), stored),
            });
            let file = Arc::new(file);
            add(&mut tensors, &file, listed)?;
            notes.extend(said.into_iter().map(|said| format!("{}: {said}", path.display())));
            first.get_or_insert((file, metadata, container));
        }
        let Some((file, metadata, container)) = first else {
            return Err(Error::file("", "expected a weight file, found none"));
        };
        let wrong = |reason: String| Error::file(&file.path, reason);
        let mut tensors = eight_bits::take(tensors).map_err(wrong)?;
        let recognised = recognise(&places(&tensors)).map_err(wrong)?;
        let others = without_others(&mut tensors, &recognised);
        if !others.is_empty() {
            notes.push(format!("{}: only {} is read; not used: {others}", file.path.display(), recognised.component));
        }
        let tensors = renamed(&recognised, tensors).map_err(wrong)?;
        refuse_unread(&recognised, &tensors).map_err(wrong)?;
        if container == Container::Torch && recognised.component == Component::HunyuanTransformer {
            refuse_without_map(&file.path, &tensors).map_err(wrong)?;
        }
        let place = file.path.display().to_string();
        let tensors = Tensors::of_entries(place, tensors, notes);
        let expert = Expert::of_path(&file.path);
        let found = Found { recognised, tensors, metadata, file };
        Ok(if expert == Some(Expert::LowNoise) { found.into_low_noise() } else { found })
    }

    /// The same, where it is a Wan transformer, as that of the steps of low noise.
    pub(crate) fn into_low_noise(mut self) -> Self {
        if self.recognised.component == Component::WanTransformer {
            self.recognised.component = Component::WanLowNoise;
        }
        self
    }
}

fn places(tensors: &BTreeMap<String, Entry>) -> BTreeMap<String, Stored> {
    tensors.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect()
}

/// What a factor of a module is called that its file names by the module alone.
const FACTOR: &str = "weight_scale";

/// Takes out what belongs to other parts of a pipeline, or to another copy of the weights, in the same file; what that
/// is.
fn without_others(tensors: &mut BTreeMap<String, Entry>, recognised: &Recognised) -> String {
    let reads = Reads::of(recognised.component);
    let mut others = BTreeSet::new();
    tensors.retain(|name, _| match recognised.other_part(name) {
        Some((part, bare)) => {
            if reads.what_of(bare) != Use::Harmless {
                others.insert(part);
            }
            false
        }
        None => true,
    });
    others.into_iter().map(|part| format!("{part}*")).collect::<Vec<_>>().join(", ")
}

/// Refuses tensors that the model does not read: who made them meant something by them.
fn refuse_unread(recognised: &Recognised, tensors: &BTreeMap<String, Entry>) -> Result<(), String> {
    if let Some(what) = by_channels(recognised.component, &places(tensors)) {
        return Err(format!("it is {what}; that is not supported"));
    }
    let reads = Reads::of(recognised.component);
    // Rows in VAEs have places without tensors.
    if recognised.component.role() != Role::Vae
        && let Some(missing) = reads.missing(tensors.keys())
    {
        return Err(format!("it is {}, but not all of it: {missing} is missing", recognised.component));
    }
    let unread: Vec<&str> =
        tensors.keys().map(String::as_str).filter(|name| reads.what_of(name) == Use::Unknown).collect();
    match unread[..] {
        [] => Ok(()),
        [first, ..] => Err(format!(
            "it is not quite {}: {} of its tensors are not read by that model, as {first}",
            recognised.component,
            unread.len()
        )),
    }
}

/// The authors' 8-bit transformer of HunyuanVideo comes in two files: the second has the factors.
fn refuse_without_map(path: &Path, tensors: &BTreeMap<String, Entry>) -> Result<(), String> {
    let bare = tensors.values().any(|entry| entry.stored.format == Format::F8E4m3 && entry.factors.is_none());
    match factor_map(path) {
        Some(map) if bare => Err(format!("expected the factors of its 8-bit weights in {}, found none", map.display())),
        _ => Ok(()),
    }
}

/// GGUF files for ComfyUI say of tensors that were folded what their shapes were: `comfy.gguf.orig_shape.NAME`.
fn unfold(listed: &mut BTreeMap<String, Stored>, metadata: &BTreeMap<String, Meta>) {
    for (name, stored) in listed {
        if let Some(Meta::Numbers(shape)) = metadata.get(&format!("comfy.gguf.orig_shape.{name}")) {
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            if let Some(unfolded) = stored.reshaped(&shape) {
                *stored = unfolded;
            }
        }
    }
}

/// The entries under canonical names. Renaming is told apart from reading, so it sees places only.
fn renamed(recognised: &Recognised, tensors: BTreeMap<String, Entry>) -> Result<BTreeMap<String, Entry>, String> {
    let mut renamed = BTreeMap::new();
    let modules = recognised.modules(&places(&tensors));
    for (name, entry) in tensors {
        for (canonical, stored) in modules.canonical(&name, entry.stored.clone()).map_err(|e| format!("{name}: {e}"))? {
            if renamed.insert(canonical.clone(), Entry { stored, ..entry.clone() }).is_some() {
                return Err(format!("{canonical}: there twice, the second time as {name}"));
            }
        }
    }
    Ok(renamed)
}

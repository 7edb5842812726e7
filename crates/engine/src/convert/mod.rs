//! Weights of any packaging, written anew: as Diffusers' safetensors, or as GGUF; LoRAs merged; a tensor at a time.
//!
//! Numbers that keep their format are copied byte by byte. What was written is read again and compared before the
//! conversion counts as done.

mod gguf;
mod packaging;
mod plan;
mod safetensors;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use navicache_media::{WholeFile, draft_folder};
use navicache_weights::layout::{folder_of, groups};
use navicache_weights::{Component, Expert, Format, Found, Lora, Residence, Role, tokenizer};
use serde::Serialize;

use crate::field::Field;
use crate::pipeline::{add_to_transformer, located, roles_of};
use crate::{Error, Result};
use packaging::Packaging;
use plan::Plan;

/// The format that matrices are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers(pub Format);

/// All that matrices can be written in.
const NUMBERS: [(&str, Format); 7] = [
    ("f32", Format::F32),
    ("f16", Format::F16),
    ("bf16", Format::Bf16),
    ("q8_0", Format::Quantized(GgmlDType::Q8_0)),
    ("q6_k", Format::Quantized(GgmlDType::Q6K)),
    ("q5_k", Format::Quantized(GgmlDType::Q5K)),
    ("q4_k", Format::Quantized(GgmlDType::Q4K)),
];

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NUMBERS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let names = || NUMBERS.map(|(name, _)| name).join(", ");
        known.map(|(_, format)| Numbers(*format)).ok_or_else(|| format!("expected one of {}", names()))
    }
}

/// What is to be converted.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// A file of weights, a folder with those of one component or of a whole model, or a model that has been pulled.
    pub from: String,
    /// A file, `.safetensors` or `.gguf`; of a whole model, a folder that is not there yet.
    pub to: PathBuf,
    /// What matrices are written in; `None`: as they are stored. What is quantised or 8 bits wide with factors, and
    /// goes into safetensors, becomes bf16 then.
    pub numbers: Option<Numbers>,
    /// What is merged into the transformer.
    pub loras: Vec<Lora>,
}

/// A file that was written.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, in words.
    pub what: String,
    /// Its bytes.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
    /// Root of the mean square of what rounding and quantising changed, relative to the matrices that were changed.
    pub error: f64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file.
    pub path: &'a Path,
    /// Tensors of it that are written.
    pub done: usize,
    /// Of so many.
    pub tensors: usize,
}

/// Converts a file, a component or a whole model.
///
/// # Errors
/// The weights are of no model that is known here; there is something already where they would go; what was written is
/// not what was meant. No half file is left.
pub fn convert(conversion: &Conversion, on_progress: &mut dyn FnMut(Progress)) -> Result<Vec<Converted>> {
    let to = &conversion.to;
    let places = located(&conversion.from)?;
    let [from] = places.as_slice() else {
        return Err(Error::file(&conversion.from, format!("is {} repositories; convert one of them", places.len())));
    };
    if to.exists() {
        return Err(Error::file(to, "it is there already; give another name, or remove it"));
    }
    let sets = groups(from)?;
    match (Packaging::of(to), sets.as_slice()) {
        (_, []) => Err(Error::file(from, "expected weights, found no weight file")),
        (Some(packaging), [files]) => {
            let found = Found::open(files)?;
            check_numbers(conversion, &[found.recognised.component])?;
            let loras = all_for(&conversion.loras, &found)?;
            let mut set = one(conversion, found, &loras, to, packaging)?;
            set.notes.extend(lost_tokenizer(&set)?);
            set.notes.extend(lost_name(&set));
            Ok(vec![set.write(on_progress)?])
        }
        (Some(_), several) => {
            let reason =
                format!("expected one set of weights for one file, found {}; give a folder to write", several.len());
            Err(Error::file(from, reason))
        }
        (None, _) if from.is_dir() => whole(conversion, from, &sets, on_progress),
        (None, _) => Err(Error::file(to, "expected the name of a .safetensors or .gguf file")),
    }
}

/// A set of weights that is about to be written.
struct Set {
    found: Found,
    to: PathBuf,
    packaging: Packaging,
    plan: Vec<Plan>,
    notes: Vec<String>,
}

/// Adds what is to be merged into a set of weights, and plans what becomes of it.
fn one(conversion: &Conversion, mut found: Found, loras: &[&Lora], to: &Path, packaging: Packaging) -> Result<Set> {
    let is_transformer = is_transformer(found.recognised.component);
    if packaging == Packaging::Gguf && !is_transformer {
        let reason =
            format!("only transformers are written as GGUF, this is {}; take .safetensors", found.recognised.component);
        return Err(Error::file(&found.file.path, reason));
    }
    let mut notes = found.tensors.notes().to_vec();
    for lora in loras {
        notes.extend(add_to_transformer(&mut found.tensors, lora)?);
    }
    found.tensors.reside(Residence::Streamed);
    let numbers = conversion.numbers.map(|Numbers(format)| format).filter(|_| is_transformer);
    let (plan, said) = plan::of(&found, packaging, numbers).map_err(|reason| Error::file(&found.file.path, reason))?;
    notes.extend(said);
    Ok(Set { found, to: to.to_path_buf(), packaging, plan, notes })
}

/// Only transformers are written in other numbers than they have.
fn check_numbers(conversion: &Conversion, components: &[Component]) -> Result<()> {
    if conversion.numbers.is_none() || components.iter().any(|component| is_transformer(*component)) {
        return Ok(());
    }
    let found: Vec<String> = components.iter().map(Component::to_string).collect();
    let reason = format!("its numbers stay as they are: expected a transformer, found {}", found.join(", "));
    Err(Error::file(&conversion.from, reason))
}

fn is_transformer(component: Component) -> bool {
    matches!(component.role(), Role::Transformer | Role::SecondTransformer)
}

/// The LoRAs that go into one file, which may be one of two transformers: what is for the other is refused, as is
/// everything where there is no transformer.
fn all_for<'a>(loras: &'a [Lora], found: &Found) -> Result<Vec<&'a Lora>> {
    let component = found.recognised.component;
    let may_be_half = component == Component::WanTransformer || component == Component::WanLowNoise;
    for lora in loras {
        let is_for = is_transformer(component) && roles_of(lora, may_be_half)?.0.contains(&component.role());
        if !is_for {
            return Err(Error::Invalid {
                field: Field::Lora,
                found: lora.path.display().to_string(),
                expected: format!("expected a transformer to merge it into, found {component}"),
            });
        }
    }
    Ok(loras.iter().collect())
}

impl Set {
    /// Writes the file and reads it again.
    fn write(self, on_progress: &mut dyn FnMut(Progress)) -> Result<Converted> {
        let Set { found, to, packaging, plan, notes } = self;
        let header = match packaging {
            Packaging::Safetensors => safetensors::header(&plan),
            Packaging::Gguf => gguf::header(found.recognised.component, &plan),
        };
        let mut draft = WholeFile::create(&to)?;
        let written = write::all(&found.tensors, &plan, &header, (&to, &mut draft), &mut |done| {
            on_progress(Progress { path: &to, done, tensors: plan.len() });
        })?;
        draft.finish()?;
        if let Err(reason) = write::check(&to, &found, &plan, &written) {
            let _ = std::fs::remove_file(&to); // a wrong file is worse than none
            return Err(Error::file(&to, format!("is not what was written: {reason}; is the disk sound?")));
        }
        let bytes = std::fs::metadata(&to).map_err(Error::io(&to))?.len();
        let what = found.recognised.component.to_string();
        Ok(Converted { path: to, what, bytes, tensors: plan.len(), error: written.error(), notes })
    }
}

/// A whole model: every set of weights where it was, and a copy of all else.
fn whole(
    conversion: &Conversion,
    from: &Path,
    sets: &[Vec<PathBuf>],
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Converted>> {
    let Conversion { to, numbers, .. } = conversion;
    let quantised = matches!(numbers, Some(Numbers(Format::Quantized(_))));
    // All are opened first, so that nothing is written where one cannot be.
    let found = sets.iter().map(|files| Ok(Found::open(files)?)).collect::<Result<Vec<_>>>()?;
    let components: Vec<Component> = found.iter().map(|found| found.recognised.component).collect();
    check_numbers(conversion, &components)?;
    let roles: Vec<Role> = components.into_iter().map(Component::role).collect();
    if let (Some(lora), false) = (conversion.loras.first(), roles.contains(&Role::Transformer)) {
        return Err(Error::Invalid {
            field: Field::Lora,
            found: lora.path.display().to_string(),
            expected: format!("expected a transformer to merge it into in {}", from.display()),
        });
    }
    let mut planned = Vec::new();
    for (files, found) in sets.iter().zip(found) {
        let place = files[0].strip_prefix(from).unwrap_or(&files[0]);
        let narrows = quantised && is_transformer(found.recognised.component);
        let (packaging, ending) =
            if narrows { (Packaging::Gguf, "gguf") } else { (Packaging::Safetensors, "safetensors") };
        let target = to.join(place.with_file_name(format!("{}.{ending}", stem_of(place))));
        let (mut loras, mut notes) = (Vec::new(), Vec::new());
        for lora in &conversion.loras {
            let (into, note) = roles_of(lora, roles.contains(&Role::SecondTransformer))?;
            if into.contains(&found.recognised.component.role()) {
                loras.push(lora);
                notes.extend(note);
            }
        }
        let mut set = one(conversion, found, &loras, &target, packaging)?;
        set.notes.extend(notes);
        planned.push(set);
    }
    let mut targets = BTreeMap::new();
    for set in &planned {
        if let Some(other) = targets.insert(set.to.clone(), set.found.file.path.clone()) {
            let reason = format!("{} and {} would both become it", other.display(), set.found.file.path.display());
            return Err(Error::file(&set.to, reason));
        }
    }
    let (draft, _lock) = draft_folder(folder_of(to)).map_err(Error::io(to))?;
    let weights: Vec<&PathBuf> = sets.iter().flatten().collect();
    copy_others(from, draft.path(), &weights)?;
    let mut made = Vec::new();
    for mut set in planned {
        let place = set.to.strip_prefix(to).unwrap_or(&set.to).to_path_buf();
        set.to = draft.path().join(&place);
        if let Some(folder) = set.to.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        if let Some(tokenizer) = tokenizer::from_weights(&set.found)? {
            keep_tokenizer(&tokenizer, draft.path())?;
        }
        let path = to.join(&place);
        let converted = set.write(&mut |progress| on_progress(Progress { path: &path, ..progress }))?;
        made.push(Converted { path, ..converted });
    }
    std::fs::rename(draft.path(), to).map_err(Error::io(to))?;
    let _ = draft.keep(); // it has another name now
    Ok(made)
}

/// A name without what says the shard and the container.
fn stem_of(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let numbers = stem.rsplit_once("-of-").and_then(|(before, _)| before.rsplit_once('-'));
    numbers.map_or(stem.clone(), |(name, _)| name.to_string())
}

/// What is to be said of a tokenizer that one file cannot hold.
fn lost_tokenizer(set: &Set) -> Result<Option<String>> {
    let stays = set.plan.iter().any(|tensor| tensor.name == "spiece_model");
    let lost = !stays && tokenizer::from_weights(&set.found)?.is_some();
    Ok(lost.then(|| {
        "its tokenizer has no place in safetensors: keep the old file for `tokenizer`, or convert the folder"
            .to_string()
    }))
}

/// What is to be said of the second of two transformers whose new name does not tell it from the first.
fn lost_name(set: &Set) -> Option<String> {
    let is_second = set.found.recognised.component == Component::WanLowNoise;
    let says_so = Expert::of_path(&set.to) == Some(Expert::LowNoise);
    (is_second && !says_so)
        .then(|| "it is for the steps of low noise, which its new name does not say: give it as `transformer_2`".into())
}

/// A tokenizer that stood in a file of weights stands beside them now.
fn keep_tokenizer(tokenizer: &tokenizers::Tokenizer, folder: &Path) -> Result<()> {
    let path = folder.join("tokenizer.json");
    if path.exists() {
        return Ok(());
    }
    let text = tokenizer.to_string(false).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(WholeFile::create(&path)?.finish_with(text.as_bytes())?)
}

/// Copies what is not weights, nor a list of their shards.
fn copy_others(from: &Path, to: &Path, weights: &[&PathBuf]) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let name = path.file_name().unwrap_or_default();
        let target = to.join(name);
        let text = name.to_string_lossy();
        if weights.contains(&&path) || text.starts_with('.') || text.ends_with(".index.json") && is_of_shards(&text) {
            continue;
        }
        if path.is_dir() {
            std::fs::create_dir_all(&target).map_err(Error::io(&target))?;
            copy_others(&path, &target, weights)?;
        } else {
            copy_content(&path, &target)?;
        }
    }
    Ok(())
}

/// Copies what is in a file. Who may read and write it is the new folder's business: the old one may be read-only.
fn copy_content(from: &Path, to: &Path) -> Result<()> {
    let mut content = File::open(from).map_err(Error::io(from))?;
    let mut copy = File::create_new(to).map_err(Error::io(to))?;
    std::io::copy(&mut content, &mut copy).map_err(Error::io(to)).map(drop)
}

fn is_of_shards(name: &str) -> bool {
    [".safetensors.index.json", ".bin.index.json"].iter().any(|end| name.ends_with(end))
}

//! The file: safetensors with the state's tensors, whatever else belongs to the state as a tensor of text, what the run
//! is in the header, and the file's own SHA-256 as the last tensor, so that any other byte is noticed.
//!
//! It is read as if somebody else had written it: counts are compared with bytes, names and shapes with what is
//! expected, no path in it is opened, and a policy has to decide again as is said.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, TensorId};
use safetensors::tensor::{SafeTensors, TensorInfo, View};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::conditions::Conditions;
use super::identity::Identity;
use crate::denoise::State;
use crate::denoise::arithmetic::is_finite;
use crate::{Error, Result, WholeFile};
use navicache_media::open_file;
use navicache_weights::WeightFile;

/// What the header says that it is, and which form of it this program writes and reads.
const FORMAT: &str = "navicache-checkpoint";
const VERSION: &str = "1";
/// The tensor that holds what is no tensor, as JSON. It may be larger than a header may be.
const STATE: &str = "state";
/// The tensor that holds the SHA-256 of all bytes before it, and its length.
const DIGEST: &str = "sha256";
const DIGEST_BYTES: usize = 32;

/// What is said in the header.
mod said {
    pub const FORMAT: &str = "format";
    pub const VERSION: &str = "version";
    pub const STEP: &str = "step";
    pub const STEPS: &str = "steps";
    pub const FRAMES: &str = "frames";
    pub const IDENTITY: &str = "identity";
    pub const WARNINGS: &str = "warnings";
}

/// A checkpoint that was read.
pub(crate) struct Saved {
    pub path: PathBuf,
    /// Steps that are done.
    pub step: usize,
    pub identity: Identity,
    pub state: State,
    /// What the run is conditioned on, where that is in the file.
    pub conditions: Conditions,
    /// What the user was warned of.
    pub warnings: Vec<String>,
}

/// Writes a state between two steps of so many, and what the run is conditioned on, whole or not at all.
pub(super) fn write(
    path: &Path,
    steps: usize,
    identity: &Identity,
    (state, conditions): (State, &Conditions),
    warnings: &[String],
) -> Result<()> {
    let step = state.clocks.len();
    let mut tensors: Vec<(String, Tensor)> =
        conditions.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    // What is a clone of another stays one: it is written once, under the first of its names.
    let mut names: HashMap<TensorId, String> = HashMap::new();
    let state = state.map(&mut |name, tensor: Tensor| {
        let first = names.entry(tensor.id()).or_insert_with(|| {
            tensors.push((name.to_string(), tensor.clone()));
            name.to_string()
        });
        Ok::<_, Error>(first.clone())
    })?;
    let text = serde_json::to_vec(&state).map_err(|e| Error::file(path, format!("{STATE}: {e}")))?;
    let length = text.len();
    tensors.push((STATE.to_string(), Tensor::from_vec(text, length, &Device::Cpu)?));
    let said = [
        (said::FORMAT, FORMAT.to_string()),
        (said::VERSION, VERSION.to_string()),
        (said::STEP, step.to_string()),
        (said::STEPS, steps.to_string()),
        (said::FRAMES, identity.frames().to_string()),
        (said::IDENTITY, json!(identity).to_string()),
        (said::WARNINGS, json!(warnings).to_string()),
    ];
    let mut file = Digested { file: WholeFile::create(path)?, digest: Sha256::new() };
    file.put(&header(&BTreeMap::from(said), &tensors), path)?;
    for (_, tensor) in &tensors {
        let here = tensor.to_device(&Device::Cpu)?;
        file.put(&View::data(&here), path)?;
    }
    let Digested { mut file, digest } = file;
    file.write_all(&digest.finalize()).map_err(Error::io(path))?;
    Ok(file.finish()?)
}

/// The length of the header, and the header. The library writes whole files in memory, or to a path of its own; this
/// one is handed to a file that is renamed when it is whole, tensor after tensor.
fn header(said: &BTreeMap<&str, String>, tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__".to_string(), json!(said))]);
    let mut end = 0;
    let mut add = |name: &str, dtype: safetensors::Dtype, shape: Vec<usize>, bytes: usize| {
        let data_offsets = (end, end + bytes);
        end += bytes;
        entries.insert(name.to_string(), json!(TensorInfo { dtype, shape, data_offsets }));
    };
    for (name, tensor) in tensors {
        add(name, tensor.dtype().into(), tensor.dims().to_vec(), View::data_len(tensor));
    }
    add(DIGEST, safetensors::Dtype::U8, vec![DIGEST_BYTES], DIGEST_BYTES);
    let mut text = json!(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// A file, and the digest of what was written to it.
struct Digested {
    file: WholeFile,
    digest: Sha256,
}

impl Digested {
    fn put(&mut self, bytes: &[u8], path: &Path) -> Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes).map_err(Error::io(path))
    }
}

/// Maps a regular file: a pipe would be waited for.
fn map(path: &Path) -> Result<WeightFile> {
    open_file(path)?;
    Ok(WeightFile::map(path)?)
}

/// How many steps of how many a checkpoint holds; nothing where the file is none.
pub(super) fn progress(path: &Path) -> Option<(usize, usize)> {
    let file = map(path).ok()?;
    let said = header_of(&file, path).ok()?;
    Some((said.get(said::STEP)?.parse().ok()?, said.get(said::STEPS)?.parse().ok()?))
}

/// Reads a checkpoint, its tensors to a device.
pub(crate) fn open(path: &Path, device: &Device) -> Result<Saved> {
    let file = map(path)?;
    let said = header_of(&file, path)?;
    let wrong = |reason: String| Error::file(path, reason);
    let bytes = file.bytes();
    let content = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("is cut short or damaged ({e})")))?;
    check_digest(bytes, &content).map_err(wrong)?;

    let step = number(&said, said::STEP).map_err(wrong)?;
    let steps = number(&said, said::STEPS).map_err(wrong)?;
    let identity: Identity = parsed(&said, said::IDENTITY).map_err(wrong)?;
    let warnings: Vec<String> = parsed(&said, said::WARNINGS).map_err(wrong)?;
    let text = content.tensor(STATE).map_err(|_| wrong(format!("{STATE}: there is no such tensor")))?;
    let state: State<String> = serde_json::from_slice(text.data()).map_err(|e| wrong(format!("{STATE}: {e}")))?;

    let mut used: HashMap<String, Tensor> = HashMap::new();
    let latents = content.tensor(&state.latents).map(|view| view.shape().to_vec()).unwrap_or_default();
    let state = state.map(&mut |name, stored: String| {
        if let Some(tensor) = used.get(&stored) {
            return Ok(tensor.clone());
        }
        let tensor = tensor(&content, &stored, device).map_err(wrong)?;
        if name.starts_with("solver.") && tensor.dims() != latents {
            return Err(wrong(format!(
                "{stored}: expected the shape of the latents, {latents:?}, found {:?}",
                tensor.dims()
            )));
        }
        used.insert(stored, tensor.clone());
        Ok(tensor)
    })?;
    let mut conditions = Conditions::default();
    for name in content.names().into_iter().filter(|name| ![STATE, DIGEST].contains(name) && !used.contains_key(*name))
    {
        if !conditions.put(name, tensor(&content, name, device).map_err(wrong)?) {
            return Err(wrong(format!("{name}: the state has no such tensor")));
        }
    }
    if step != state.clocks.len() || step > steps {
        let found = state.clocks.len();
        return Err(wrong(format!("step {step} of {steps}: the state is that after {found} steps")));
    }
    if let Some(clock) = state.clocks.iter().find(|clock| !clock.is_sane()) {
        return Err(wrong(format!("a step took {clock:?}: expected seconds")));
    }
    Ok(Saved { path: path.to_path_buf(), step, identity, state, conditions, warnings })
}

type Header = HashMap<String, String>;

/// What the header says, if it is one of a checkpoint that this program reads.
fn header_of(file: &WeightFile, path: &Path) -> Result<Header> {
    let (_, header) = SafeTensors::read_metadata(file.bytes())
        .map_err(|e| Error::file(path, format!("is no whole checkpoint: its header cannot be read ({e})")))?;
    let said = header.metadata().clone().unwrap_or_default();
    if said.get(said::FORMAT).is_none_or(|format| format != FORMAT) {
        return Err(Error::file(path, "is no checkpoint of navicache"));
    }
    match said.get(said::VERSION).map(String::as_str) {
        Some(VERSION) => Ok(said),
        found => {
            let found = found.unwrap_or("none");
            Err(Error::file(path, format!("is a checkpoint of version {found}, this program reads {VERSION}")))
        }
    }
}

fn check_digest(bytes: &[u8], content: &SafeTensors) -> Result<(), String> {
    let said = content.tensor(DIGEST).map_err(|_| format!("{DIGEST}: there is no such tensor"))?;
    let (before, last) = bytes.split_at(bytes.len().saturating_sub(DIGEST_BYTES));
    if said.data() != last {
        return Err(format!("{DIGEST}: expected it to be the last {DIGEST_BYTES} bytes"));
    }
    let hex = |digest: &[u8]| digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    let found = Sha256::digest(before);
    match found[..] == *last {
        true => Ok(()),
        false => Err(format!("is damaged: its SHA-256 is {}..., expected {}...", hex(&found), hex(last))),
    }
}

fn number(said: &Header, what: &str) -> Result<usize, String> {
    let text = said.get(what).ok_or_else(|| format!("{what}: the header does not say it"))?;
    text.parse().map_err(|_| format!("{what}: expected a number, found {text:?}"))
}

fn parsed<T: serde::de::DeserializeOwned>(said: &Header, what: &str) -> Result<T, String> {
    let text = said.get(what).ok_or_else(|| format!("{what}: the header does not say it"))?;
    serde_json::from_str(text).map_err(|e| format!("{what}: {e}"))
}

fn tensor(content: &SafeTensors, name: &str, device: &Device) -> Result<Tensor, String> {
    let view = content.tensor(name).map_err(|_| format!("{name}: there is no such tensor"))?;
    let read = || {
        let dtype = DType::try_from(view.dtype())?;
        Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)
    };
    let tensor = read().map_err(|e| format!("{name}: {e}"))?;
    match is_finite(&tensor) {
        Ok(true) => tensor.to_device(device).map_err(|e| format!("{name}: {e}")),
        Ok(false) => Err(format!("{name}: expected finite numbers, found NaN or infinity")),
        Err(e) => Err(format!("{name}: {e}")),
    }
}

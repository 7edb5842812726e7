//! The two layouts of PyTorch's files: where the pickles and the storages' bytes are.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::machine::{Machine, NAME_MAX, Value};
use crate::file::Listing;

/// Most bytes of the pickle; the largest that are published have less than one million.
const PICKLE_MAX: u64 = 8 << 20;
/// The first bytes of an old file: a number, pickled.
pub const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The only version of old files.
const OLD_VERSION: i64 = 1001;
/// Lists the tensors of an archive. Dictionaries inside of dictionaries are followed; their keys are left out of the
/// names where they are of the kind that training scripts put around (`module`, `state_dict`).
pub fn list(bytes: &[u8]) -> Result<Listing, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|e| format!("not a whole zip archive of {} bytes ({e}); download it again", bytes.len()))?;
    let entries = entries(&mut archive, bytes.len())?;
    let name = entries.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let name = name.ok_or("a zip archive without data.pkl: not one that PyTorch wrote")?;
    let prefix = name.trim_end_matches("data.pkl");
    if let Some(order) = entries.get(&format!("{prefix}byteorder")).and_then(|range| bytes.get(range.clone()))
        && order != b"little"
    {
        return Err("its numbers are big-endian; save it again on a little-endian machine".to_string());
    }
    let program = entries[name].clone();
    if program.len() as u64 > PICKLE_MAX {
        return Err(format!("data.pkl: expected at most {PICKLE_MAX} bytes, found {}", program.len()));
    }
    let program = bytes.get(program).ok_or("data.pkl is beyond the end of the file")?;
    let mut machine = Machine::new(program);
    let root = machine.run().map_err(|reason| format!("data.pkl: {reason}"))?;
    machine.listing(root, |key| entries.get(&format!("{prefix}data/{key}")))
}

/// Lists the tensors of a file of the old kind: pickles of [`MAGIC`], of a version, of the machine's properties, of the
/// tensors and of the storages' names; then each storage, its numbers after how many they are.
pub fn list_old(bytes: &[u8]) -> Result<Listing, String> {
    let mut at = MAGIC.len();
    let mut next = |what: &str| {
        let rest = bytes.get(at..).unwrap_or_default();
        let mut machine = Machine::new(&rest[..rest.len().min(PICKLE_MAX as usize)]);
        let root = machine.run().map_err(|reason| format!("{what}: {reason}"))?;
        at += machine.at;
        Ok::<_, String>((machine, root))
    };
    let (machine, version) = next("the version")?;
    if !matches!(machine.values[version], Value::Integer(OLD_VERSION)) {
        return Err(format!(
            "expected version {OLD_VERSION} of PyTorch's old files, found another; save it again as safetensors"
        ));
    }
    let (machine, properties) = next("the properties")?;
    if !matches!(machine.item(properties, "little_endian"), Some(Value::Integer(1))) {
        return Err("its numbers are big-endian; save it again on a little-endian machine".to_string());
    }
    let (described, root) = next("the tensors")?;
    let (machine, names) = next("the storages' names")?;
    let Value::List(names) = &machine.values[names] else {
        return Err("the storages' names: expected a list".to_string());
    };
    let sizes = described.storage_sizes();
    let mut storages = BTreeMap::new();
    for &name in names {
        let name = match &machine.values[name] {
            Value::Text(name) if name.len() <= NAME_MAX => name,
            _ => return Err(format!("the storages' names: expected text of at most {NAME_MAX} bytes")),
        };
        let storage = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<8>()).and_then(|(count, rest)| {
            let size = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(*sizes.get(name.as_str())?)?;
            (size <= rest.len()).then_some(at + 8..at + 8 + size)
        });
        let storage =
            storage.ok_or_else(|| format!("storage {name} is beyond the end of the file; download it again"))?;
        at = storage.end;
        storages.insert(name.as_str(), storage);
    }
    described.listing(root, |key| storages.get(key))
}

/// Where every entry's bytes lie, in a file of a length.
fn entries(archive: &mut ZipArchive<Cursor<&[u8]>>, file: usize) -> Result<BTreeMap<String, Range<usize>>, String> {
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| e.to_string())?;
        let name = entry.name().map_err(|e| e.to_string())?.into_owned();
        if entry.is_dir() {
            continue;
        }
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
            return Err(format!(
                "{name} is compressed, {} bytes that claim to be {}: PyTorch stores tensors as they are",
                entry.compressed_size(),
                entry.size()
            ));
        }
        let start = entry.data_start().ok_or_else(|| format!("{name}: no data"))?;
        let end = start.checked_add(entry.size()).filter(|&end| end <= file as u64);
        let end =
            end.ok_or_else(|| format!("{name}: {} bytes at {start} are beyond the end of the file", entry.size()))?;
        let (start, end) = (start as usize, end as usize);
        if entries.insert(name.clone(), start..end).is_some() {
            return Err(format!("{name}: there twice"));
        }
    }
    Ok(entries)
}

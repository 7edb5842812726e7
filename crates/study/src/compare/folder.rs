//! The folder of a comparison: which file is whose, and which runs are done.
//!
//! ```text
//! plan.json                                  prompts, methods and seeds, of every plan that was run here
//! videos/PROMPT-1/seed-0/METHOD.mp4          the video
//! videos/PROMPT-1/seed-0/METHOD.json         its record, written last: report, measurements, blocks
//! videos/PROMPT-1/seed-0/none.frames.safetensors    what the others are measured against
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use navicache_engine::weights::layout::folder_of;
use navicache_engine::{WholeFile, report};

use crate::error::{Error, Result};

/// The method that everything is compared with.
pub const REFERENCE: &str = "none";

const PLAN: &str = "plan.json";
/// Version of the folder's files.
pub(super) const VERSION: u32 = 1;

pub(super) struct Folder {
    root: PathBuf,
    plan: Saved,
    /// Held while runs are added: two programs at once would write under the same names. Gone with the program.
    _lock: Option<File>,
}

/// How a part of a folder was made, for those who want to repeat it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The command line.
    pub command: String,
    /// Version and commit of the program.
    pub program: String,
    /// Operating system and architecture.
    pub system: String,
    /// When it began, in seconds since 1970.
    pub began: u64,
}

/// What the folder is to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    version: u32,
    /// What all runs share. Means over different settings would say nothing.
    settings: Value,
    pub prompts: Vec<String>,
    pub methods: Vec<String>,
    pub seeds: Vec<u64>,
    /// The commands that it was made by, where they are known.
    #[serde(default)]
    pub calls: Vec<Call>,
}

/// What is asked of a folder.
pub(super) struct Asked<'a> {
    pub prompts: &'a [String],
    pub methods: &'a [String],
    pub seeds: &'a [u64],
    pub call: Option<&'a Call>,
}

impl Folder {
    /// Opens a folder, made if it is not there, and adds what is new to its plan.
    pub fn open(root: &Path, asked: Asked, settings: Value) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(Error::io(root))?;
        let lock = locked(root)?;
        let before = if root.join(PLAN).exists() { Some(Folder::read(root)?.plan) } else { None };
        if let Some(before) = &before {
            check_same("", &root.join(PLAN), &before.settings, &settings)?;
        }
        let empty = || Saved {
            version: VERSION,
            settings,
            prompts: Vec::new(),
            methods: Vec::new(),
            seeds: Vec::new(),
            calls: Vec::new(),
        };
        let mut plan = before.clone().unwrap_or_else(empty);
        add(&mut plan.prompts, asked.prompts);
        add(&mut plan.methods, asked.methods);
        add(&mut plan.seeds, asked.seeds);
        // A command that is given again goes on with the same work.
        let is_there =
            |call: &Call| plan.calls.iter().any(|other| *other == Call { began: other.began, ..call.clone() });
        let new = asked.call.filter(|call| !is_there(call)).cloned();
        plan.calls.extend(new);
        if before.as_ref() != Some(&plan) {
            let text = serde_json::to_value(&plan).unwrap_or_default();
            WholeFile::create(&root.join(PLAN))?.finish_with(format!("{text:#}\n").as_bytes())?;
        }
        Ok(Folder { root: root.to_path_buf(), plan, _lock: lock })
    }

    /// Opens one that is there.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join(PLAN);
        if !path.exists() {
            let reason = format!("expected a folder that `navicache compare` made; it has no {PLAN}");
            return Err(Error::file(root, reason));
        }
        let plan: Saved = read_json(&path)?;
        if plan.version != VERSION {
            return Err(Error::file(path, format!("is of version {}, expected {VERSION}", plan.version)));
        }
        Ok(Folder { root: root.to_path_buf(), plan, _lock: None })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn plan(&self) -> &Saved {
        &self.plan
    }

    /// Where a run of the plan is kept.
    pub fn record(&self, prompt: &str, seed: u64, method: &str) -> Record {
        let prompt = name_in(&self.plan.prompts, prompt);
        let method = if method == REFERENCE { REFERENCE.to_string() } else { name_in(&self.plan.methods, method) };
        let stem = format!("videos/{prompt}/seed-{seed}/{method}");
        Record { root: self.root.clone(), stem }
    }
}

/// The lock of a folder, on the folder itself, so that nothing is left behind. Where folders cannot be locked (Windows,
/// some network file systems) there is none.
fn locked(root: &Path) -> Result<Option<File>> {
    let Ok(file) = File::open(root) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let reason = "another `navicache compare` writes into this folder; wait for it, or take another folder";
            Err(Error::file(root, reason))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn add<T: Clone + PartialEq>(to: &mut Vec<T>, values: &[T]) {
    for value in values {
        if !to.contains(value) {
            to.push(value.clone());
        }
    }
}

/// Longest part of a file's name that is made of a text.
const NAME_MAX: usize = 48;

/// A name for a text of a list: what of it may stand in the name of a file, and its number in the list, which makes it
/// the only one.
fn name_in(list: &[String], text: &str) -> String {
    let number = list.iter().position(|other| other == text).map_or(0, |position| position + 1);
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            c if c.is_ascii_alphanumeric() || c == '.' && !name.is_empty() => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(NAME_MAX); // ASCII by now
    let name = name.trim_end_matches(['-', '.']);
    if name.is_empty() { number.to_string() } else { format!("{name}-{number}") }
}

/// The files of one run.
#[derive(Debug, Clone)]
pub(super) struct Record {
    root: PathBuf,
    /// Relative to the folder, with `/` on every system, without an ending.
    stem: String,
}

impl Record {
    /// The video, as a page in the folder refers to it.
    pub fn link(&self) -> String {
        format!("{}.mp4", self.stem)
    }

    pub fn video(&self) -> PathBuf {
        self.root.join(self.link())
    }

    /// The lossless frames of a reference.
    pub fn frames(&self) -> PathBuf {
        self.root.join(format!("{}.frames.safetensors", self.stem))
    }

    fn path(&self) -> PathBuf {
        self.root.join(format!("{}.json", self.stem))
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    pub fn make_folder(&self) -> Result<()> {
        let folder = folder_of(&self.path()).to_path_buf();
        std::fs::create_dir_all(&folder).map_err(Error::io(folder))
    }

    pub fn write(&self, record: &Value) -> Result<()> {
        Ok(WholeFile::create(&self.path())?.finish_with(format!("{record:#}\n").as_bytes())?)
    }

    pub fn read(&self) -> Result<Value> {
        let record: Value = read_json(&self.path())?;
        let version = &record["version"];
        if *version != report::VERSION {
            let expected = report::VERSION;
            return Err(Error::file(self.path(), format!("is of version {version}, expected {expected}")));
        }
        Ok(record)
    }

    /// Whether the run was done, with the settings that are expected; an error if it was done with others.
    pub fn is_done(&self, expected: &Value) -> Result<bool> {
        if !self.exists() {
            return Ok(false);
        }
        let record = self.read()?;
        for (field, expected) in expected.as_object().into_iter().flatten() {
            check_same(field, &self.path(), &record[field], expected)?;
        }
        Ok(true)
    }
}

/// Refuses settings that are not those of the file.
fn check_same(at: &str, path: &Path, found: &Value, expected: &Value) -> Result<()> {
    let Some((what, found, expected)) = different(at, found, expected) else { return Ok(()) };
    let what = what.trim_start_matches('.');
    let reason = format!(
        "was made with {what} {found}, now it is {expected}; give the same settings, or another folder with -o"
    );
    Err(Error::file(path, reason))
}

/// The first difference of two values: where, and both.
fn different<'a>(at: &str, found: &'a Value, expected: &'a Value) -> Option<(String, &'a Value, &'a Value)> {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().find_map(|key| different(&format!("{at}.{key}"), &found[key], &expected[key]))
        }
        _ => (found != expected).then(|| (at.to_string(), found, expected)),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("not what `navicache compare` writes: {e}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_short_plain_and_the_only_ones() {
        let list: Vec<String> =
            ["A red circle!", "a red circle", "../../etc", "日本", "navicache,threshold=0.1", &"x".repeat(500)]
                .map(String::from)
                .to_vec();
        let names: Vec<String> = list.iter().map(|text| name_in(&list, text)).collect();
        assert_eq!(names[..5], ["a-red-circle-1", "a-red-circle-2", "etc-3", "4", "navicache-threshold-0.1-5"]);
        assert!(names[5].len() < 60);
    }

    #[test]
    #[cfg(unix)]
    fn a_folder_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let prompts = ["a".to_string()];
        let asked = || Asked { prompts: &prompts, methods: &[], seeds: &[0], call: None };
        let open = || Folder::open(folder.path(), asked(), json!({}));
        let first = open().unwrap();
        let message = open().err().unwrap().to_string();
        assert!(message.contains("another `navicache compare` writes"), "{message}");
        assert!(Folder::read(folder.path()).is_ok(), "it can be read meanwhile");
        drop(first);
        assert!(open().is_ok());
    }

    #[test]
    fn a_command_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let call = |command: &str, began| Call {
            command: command.to_string(),
            program: "1".to_string(),
            system: "linux".to_string(),
            began,
        };
        for call in [call("a", 1), call("a", 2), call("b", 3)] {
            let asked = Asked { prompts: &[], methods: &[], seeds: &[], call: Some(&call) };
            Folder::open(folder.path(), asked, json!({})).unwrap();
        }
        assert_eq!(Folder::read(folder.path()).unwrap().plan.calls, [call("a", 1), call("b", 3)]);
    }

    #[test]
    fn differences_are_named() {
        let (a, b) = (json!({"x": {"y": 1, "z": [1]}}), json!({"x": {"y": 1, "z": [2]}}));
        let (what, found, expected) = different("request", &a, &b).unwrap();
        assert_eq!((what.as_str(), found, expected), ("request.x.z", &json!([1]), &json!([2])));
        assert!(different("", &a, &a).is_none());
        assert_eq!(different("r", &json!({}), &json!({"k": 1})).unwrap().0, "r.k", "what is missing differs");
    }
}

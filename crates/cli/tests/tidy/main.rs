//! What the sources promise about themselves: who may know whom, how long a file may be, what a library may say. The
//! rules are in `rules`, the exceptions here: they only ever become fewer.

mod lexer;
mod modules;
mod rules;

use std::path::{Path, PathBuf};
use std::process::Command;

use navicache_engine::control::cache::CacheConfig;
use rules::{Edge, Exceptions, File, Packages};

/// Who must not know whom, neither directly nor through another crate of ours.
const FORBIDDEN: &[Edge] = &[
    ("navicache-control", &["candle*", "navicache-*"]),
    ("navicache-replay", &["candle*", "navicache-engine", "navicache-models", "navicache-weights", "navicache-media"]),
    ("navicache-kernels", &["navicache-*"]),
    ("navicache-models", &["navicache-control", "navicache-weights", "safetensors", "zip"]),
    ("navicache-weights", &["navicache-control", "navicache-engine", "ureq", "openh264"]),
    ("navicache-media", &["candle*", "navicache-*", "ureq"]),
    ("navicache-metrics", &["navicache-control", "navicache-engine", "ureq"]),
    ("navicache-engine", &["navicache-hub", "navicache-study", "ureq", "clap", "axum", "pyo3"]),
    ("navicache-page", &["navicache-*"]),
    ("navicache-hub", &["navicache-engine", "navicache-control"]),
    ("navicache-server", &["navicache-hub", "navicache-study", "ureq", "clap"]),
    ("navicache-study", &["navicache-hub", "ureq", "clap"]),
    ("navicache-python", &["navicache-hub", "navicache", "ureq", "clap"]),
];

/// Circles of modules that are still to be cut.
const CIRCLES: &[(&str, &str)] = &[];

/// Most of all lines that one crate may have, in per cent.
const LARGEST_SHARE: usize = 20;

/// Files that may be long, and why.
const LONG: &[(&str, &str)] = &[];

/// Libraries, which know no command line.
const LIBRARIES: &[&str] = &["control", "replay", "models", "weights", "media", "metrics", "engine"];

/// Texts that speak of options today.
const OPTION_WORDS: &Exceptions = &[];

/// Comments that are still to be wrapped.
const WIDE_COMMENTS: &[&str] = &[];

#[test]
fn crates_know_only_what_they_may() {
    check(rules::forbidden_edges(&packages(), FORBIDDEN));
}

#[test]
fn modules_do_not_go_in_circles() {
    check(rules::circles(&sources(), CIRCLES));
}

#[test]
fn no_crate_is_most_of_it() {
    check(rules::large_crates(&sources(), LARGEST_SHARE));
}

#[test]
fn files_are_short_or_have_a_reason() {
    check(rules::long_files(&sources(), LONG));
}

#[test]
fn libraries_do_not_speak_of_options() {
    check(rules::option_words(&sources(), LIBRARIES, OPTION_WORDS));
}

#[test]
fn comments_are_wrapped() {
    check(rules::wide_comments(&sources(), WIDE_COMMENTS));
}

#[test]
fn no_note_is_left_behind() {
    check(rules::left_notes(&sources()));
}

#[test]
fn the_readme_counts_the_methods() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    // `none` caches nothing, and `schedule` repeats what another method did.
    let is_method = |name: &str| !["none", "schedule"].contains(&name);
    let methods = CacheConfig::METHODS.iter().filter(|about| is_method(about.name)).count();
    check(rules::number_of_methods(&readme, methods));
}

fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The files of all crates that are written by hand.
fn sources() -> Vec<File> {
    let root = root();
    let mut files = Vec::new();
    let mut open = vec![root.join("crates")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let ending = path.extension().map(|ending| ending.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                open.push(path);
            } else if ["rs", "html", "css", "js"].contains(&ending.as_str()) {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 100, "expected the sources, found {} files", files.len());
    files
}

/// What `cargo metadata` says of the workspace's packages.
fn packages() -> Packages {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let used = dependencies.filter(|dependency| dependency["kind"] != "dev");
            let names = used.map(|dependency| dependency["name"].as_str().unwrap().to_string());
            (package["name"].as_str().unwrap().to_string(), names.collect())
        })
        .collect()
}

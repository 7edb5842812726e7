//! Models from the Hugging Face hub, in the cache that its own tools use, so that what one downloaded the other finds:
//! `models--OWNER--NAME/{blobs,refs,snapshots}`.
//!
//! A file is written as `blobs/HASH.incomplete`, compared with its hash, and only then renamed; a snapshot's link to it comes after, and the
//! reference to the snapshot last. So whatever happens, nothing looks whole that is not, and what is there is used again.

mod download;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Response;
use ureq::{Agent, Body, Proxy};

use self::download::{Download, incomplete};
use crate::{Error, Result};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// The branch that is taken.
const REVISION: &str = "main";
/// Times that a connection may break without a byte of progress.
const ATTEMPTS: u32 = 5;
/// Silence after which a connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);

/// How a download goes on. Answer [`ControlFlow::Break`] to stop; what is there stays and is used again.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// What will be downloaded.
    Planned {
        /// Files of the model.
        files: usize,
        /// Their bytes.
        bytes: u64,
        /// Of these, how many are here already.
        here: u64,
    },
    /// Some of a file has come.
    Progress {
        /// The file.
        file: &'a str,
        /// Bytes of all files that are here.
        done: u64,
        /// Bytes of all files.
        bytes: u64,
    },
    /// A connection broke; it is tried again.
    Retry {
        /// The file.
        file: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// The hub as the environment describes it: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address without a slash at its end.
    pub endpoint: String,
    /// Folder of all repositories.
    pub cache: PathBuf,
    /// For repositories that ask who comes.
    pub token: Option<String>,
    /// Whether nothing may be downloaded.
    pub offline: bool,
    /// What is waited after a connection broke, times the number of breaks.
    pub pause: Duration,
}

/// A file of a repository.
#[derive(Debug, Clone)]
struct Remote {
    name: String,
    size: u64,
    hash: Hash,
}

/// What a file's content has to be.
#[derive(Debug, Clone, PartialEq)]
enum Hash {
    /// SHA-256 of the content.
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content, as Git has it.
    Git(String),
}

impl Hash {
    fn of(tag: &str) -> Option<Self> {
        let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hex = tag.bytes().all(|b| b.is_ascii_hexdigit());
        match tag.len() {
            64 if hex => Some(Hash::Sha256(tag)),
            40 if hex => Some(Hash::Git(tag)),
            _ => None,
        }
    }

    fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::Git(hex) => hex,
        }
    }
}

impl Hub {
    /// Reads the environment.
    pub fn from_env() -> Result<Self> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            Some(cache.or_else(|| Some(env::home_dir()?.join(".cache")))?.join("huggingface"))
        });
        let home = home.ok_or_else(|| hub_error("HF_HOME", "expected it or a home directory, found neither"))?;
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        Ok(Hub {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string()).trim_end_matches('/').to_string(),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|v| !["0", "false", "no", "off"].contains(&v.to_lowercase().as_str())),
            pause: Duration::from_secs(1),
        })
    }

    /// The folder of a repository's files, if it has been downloaded.
    pub fn snapshot(&self, repository: &str) -> Option<PathBuf> {
        let folder = self.folder(repository);
        let commit = fs::read_to_string(folder.join("refs").join(REVISION)).ok()?;
        let snapshot = folder.join("snapshots").join(commit.trim());
        let is_name = !commit.trim().is_empty() && Path::new(commit.trim()).file_name() == Some(commit.trim().as_ref());
        (is_name && snapshot.is_dir()).then_some(snapshot)
    }

    fn folder(&self, repository: &str) -> PathBuf {
        self.cache.join(format!("models--{}", repository.replace('/', "--")))
    }

    /// Downloads a repository, or goes on with it, and gives the folder of its files. `only`: parts of names; with any, files whose
    /// names have none of them are left out.
    pub fn pull(
        &self,
        repository: &str,
        only: &[String],
        on_event: &mut dyn FnMut(PullEvent) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        if self.offline {
            return match self.snapshot(repository) {
                Some(snapshot) => Ok(snapshot),
                None => {
                    Err(hub_error(repository, "it is not here, and HF_HUB_OFFLINE is set: nothing may be downloaded"))
                }
            };
        }
        let agent = agent(&self.endpoint);
        let (commit, files) = self.list(&agent, repository, only)?;
        let folder = self.folder(repository);
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;

        let here = |file: &Remote| blobs.join(file.hash.hex()).exists();
        let bytes = files.iter().map(|file| file.size).sum();
        let mut done: u64 = files.iter().filter(|file| here(file)).map(|file| file.size).sum();
        self.check_space(&blobs, &files)?;
        let _ = on_event(PullEvent::Planned { files: files.len(), bytes, here: done });
        for file in &files {
            if !here(file) {
                let url = format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(&file.name));
                let mut download = Download { hub: self, agent: &agent, file, url, done, bytes, on_event };
                download.run(&blobs.join(file.hash.hex()))?;
                done += file.size;
            }
            link(&folder.join("snapshots").join(&commit), file)?;
        }
        // The snapshot's name comes last: until now none of this was there for anyone who looks for a model.
        let reference = folder.join("refs").join(REVISION);
        fs::create_dir_all(folder.join("refs")).map_err(Error::io(&reference))?;
        crate::WholeFile::create(&reference)?.finish_with(commit.as_bytes())?;
        Ok(folder.join("snapshots").join(&commit))
    }

    /// The commit that the branch is at, and its files that a model may need.
    fn list(&self, agent: &Agent, repository: &str, only: &[String]) -> Result<(String, Vec<Remote>)> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            #[serde(rename = "blobId")]
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
            oid: Option<String>,
            size: Option<u64>,
        }
        let url = format!("{}/api/models/{repository}/revision/{REVISION}?blobs=true", self.endpoint);
        let mut response = self.get_patiently(agent, repository, &url)?;
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string();
        let text = text.map_err(|e| hub_error(&url, &e.to_string()))?;
        let info: Info = serde_json::from_str(&text).map_err(|e| {
            hub_error(&url, &format!("expected the list of a repository's files, found something else ({e})"))
        })?;
        if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(hub_error(&url, &format!("expected a commit, found {:?}", info.sha)));
        }
        let mut names = BTreeSet::new();
        let mut files = Vec::new();
        for sibling in info.siblings {
            let name = sibling.rfilename;
            if !is_of_a_model(&name, only) {
                continue;
            }
            if !is_inside(&name) || !names.insert(name.clone()) {
                return Err(hub_error(&url, &format!("a file name that leads elsewhere: {name:?}")));
            }
            let lfs = sibling.lfs.as_ref();
            let tag = lfs.and_then(|lfs| lfs.sha256.as_ref().or(lfs.oid.as_ref())).or(sibling.blob_id.as_ref());
            let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
            files.push(match (tag.and_then(|tag| Hash::of(tag.trim_start_matches("sha256:"))), size) {
                (Some(hash), Some(size)) => Remote { name, size, hash },
                _ => self.describe(agent, repository, &info.sha, name)?,
            });
        }
        if files.is_empty() {
            let reason =
                if only.is_empty() { "it has no files of a model" } else { "it has no file of such a name (--only)" };
            return Err(hub_error(repository, reason));
        }
        Ok((info.sha, files))
    }

    /// Asks for the size and hash of a file that the list does not say them of.
    fn describe(&self, agent: &Agent, repository: &str, commit: &str, name: String) -> Result<Remote> {
        let url = format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(&name));
        let request = agent.head(&url).config().max_redirects(0).max_redirects_will_error(false).build();
        let mut response = self.authorized(request).call().map_err(|e| unreachable(&url, &e))?;
        if matches!(response.status().as_u16(), 405 | 501) {
            // A server that does not know HEAD: the headers of the whole say it too.
            response = self.authorized(agent.get(&url)).call().map_err(|e| unreachable(&url, &e))?;
        }
        if response.status().as_u16() >= 400 {
            return Err(self.refused(repository, &url, &response));
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let size = header("x-linked-size").or(header("content-length")).and_then(|size| size.parse().ok());
        let hash = header("x-linked-etag").or(header("etag")).and_then(Hash::of);
        match (size, hash) {
            (Some(size), Some(hash)) => Ok(Remote { name, size, hash }),
            _ => Err(hub_error(
                &url,
                "expected its size and hash, found neither in the list nor in the answer's headers",
            )),
        }
    }

    /// A request that is put again when the connection breaks.
    fn get_patiently(&self, agent: &Agent, repository: &str, url: &str) -> Result<Response<Body>> {
        for attempt in 1.. {
            match self.authorized(agent.get(url)).call() {
                Ok(response) if response.status().as_u16() == 200 => return Ok(response),
                Ok(response) if response.status().as_u16() < 500 || attempt == ATTEMPTS => {
                    return Err(self.refused(repository, url, &response));
                }
                Err(error) if attempt == ATTEMPTS => return Err(unreachable(url, &error)),
                _ => std::thread::sleep(self.pause * attempt),
            }
        }
        Err(hub_error(url, "no answer"))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// What an answer means that is not the one that was hoped for.
    fn refused(&self, repository: &str, url: &str, response: &Response<Body>) -> Error {
        let status = response.status().as_u16();
        let page = format!("{}/{repository}", self.endpoint);
        let reason = match (status, &self.token) {
            (401, None) => format!(
                "the hub asks who you are (401): there is no such repository, or it is not open to all; log in at {page}, accept its \
                 terms, and set HF_TOKEN to a token of yours"
            ),
            (401, Some(_)) => "the hub does not know this token (401); make a new one and set HF_TOKEN".to_string(),
            (403, _) => format!("access is not granted (403); accept the terms at {page}, and set HF_TOKEN"),
            (404, _) => "there is no such file or repository (404); `navicache models` lists known names".to_string(),
            (429, _) => "the hub asks for patience (429); try again later, or set HF_TOKEN".to_string(),
            _ => format!("the hub answers with status {status}; try again later"),
        };
        hub_error(url, &reason)
    }

    /// Refuses what the disk has no room for, before the first byte.
    fn check_space(&self, blobs: &Path, files: &[Remote]) -> Result<()> {
        let missing = files.iter().filter(|file| !blobs.join(file.hash.hex()).exists());
        let needed: u64 = missing
            .map(|file| {
                let begun = fs::metadata(incomplete(&blobs.join(file.hash.hex()))).map_or(0, |m| m.len());
                file.size.saturating_sub(begun)
            })
            .sum();
        let free = fs4::available_space(blobs).map_err(Error::io(blobs))?;
        if needed <= free {
            return Ok(());
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        Err(Error::file(
            blobs,
            format!(
                "{:.1} GB are to be downloaded, {:.1} GB are free on this disk; make room, or set HF_HOME to a folder on another",
                gb(needed),
                gb(free)
            ),
        ))
    }
}

fn agent(endpoint: &str) -> Agent {
    // A proxy leads out of the machine; a hub on this one is not there.
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let is_local = ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local));
    let proxy = if is_local { None } else { Proxy::try_from_env() };
    Agent::config_builder()
        .proxy(proxy)
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("navicache/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Whether a file of a repository is of use: not the pages, pictures and scripts beside a model.
fn is_of_a_model(name: &str, only: &[String]) -> bool {
    if !only.is_empty() {
        return only.iter().any(|part| name.contains(part.as_str()));
    }
    const ENDINGS: [&str; 9] = ["safetensors", "gguf", "pth", "pt", "bin", "json", "model", "txt", "spm"];
    const BESIDE: [&str; 3] = ["assets/", "examples/", "xlm-roberta-large/"];
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ENDINGS.contains(&ending) && !BESIDE.iter().any(|folder| name.starts_with(folder))
}

/// Whether a name stays inside of the folder it is put in.
fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':']);
    name.split('/').all(plain)
}

/// A path as part of an address.
fn escaped(name: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes().map(|b| if keep(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Puts a blob under its name into a snapshot.
fn link(snapshot: &Path, file: &Remote) -> Result<()> {
    let path = snapshot.join(&file.name);
    let parent = navicache_media::folder_of(&path);
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    if path.exists() {
        return Ok(());
    }
    // A link that leads nowhere, left by someone who removed the blob.
    let _ = fs::remove_file(&path);
    let up = "../".repeat(file.name.matches('/').count() + 2);
    let blob = PathBuf::from(format!("{up}blobs/{}", file.hash.hex()));
    #[cfg(unix)]
    std::os::unix::fs::symlink(&blob, &path).map_err(Error::io(&path))?;
    #[cfg(not(unix))]
    fs::copy(parent.join(&blob), &path).map_err(Error::io(&path))?;
    Ok(())
}

fn unreachable(url: &str, error: &ureq::Error) -> Error {
    hub_error(url, &format!("cannot be reached ({error}); is there a network, and is HF_ENDPOINT right?"))
}

fn hub_error(what: &str, reason: &str) -> Error {
    Error::Hub { what: what.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for good in ["config.json", "google/umt5-xxl/spiece.model"] {
            assert!(is_inside(good));
        }
        for bad in ["", "../x", "/etc/passwd", "a/../../b", "a//b", "a\\b", "C:/x", "."] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn what_belongs_to_a_model() {
        assert!(is_of_a_model("Wan2.1_VAE.pth", &[]) && is_of_a_model("google/umt5-xxl/spiece.model", &[]));
        assert!(!is_of_a_model("assets/logo.png", &[]) && !is_of_a_model("README.md", &[]));
        let only = ["Q4_K".to_string()];
        assert!(is_of_a_model("wan-Q4_K_M.gguf", &only) && !is_of_a_model("wan-Q8_0.gguf", &only));
        assert_eq!(escaped("a b/ä.json"), "a%20b/%C3%A4.json");
    }

    #[test]
    fn hashes() {
        let sha = "a".repeat(64);
        assert_eq!(Hash::of(&format!("\"{sha}\"")), Some(Hash::Sha256(sha)));
        assert_eq!(Hash::of(&"B".repeat(40)), Some(Hash::Git("b".repeat(40))));
        assert_eq!(Hash::of("W/\"abc\""), None);
    }
}

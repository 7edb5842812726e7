//! A repository, file by file.

use bytesize::ByteSize;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use navicache_weights::hub_cache::REVISION;
use navicache_weights::layout::folder_of;
use serde::Deserialize;
use tempfile::NamedTempFile;
use ureq::Agent;

use crate::client::{Hub, agent, unreachable};
use crate::download::{Download, incomplete};
use crate::error::{Error, Result, hub_error};
use crate::event::Event;
use crate::remote::{Hash, Remote, escaped, is_inside, is_of_a_model};

impl Hub {
    /// Downloads a repository, or goes on with it, and gives the folder of its files. `only`: parts of names; with any,
    /// files whose names have none of them are left out.
    pub fn pull(
        &self,
        repository: &str,
        only: &[String],
        on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        if self.offline {
            return match self.cache.snapshot(repository) {
                Some(snapshot) => Ok(snapshot),
                None => {
                    Err(hub_error(repository, "it is not here, and HF_HUB_OFFLINE is set: nothing may be downloaded"))
                }
            };
        }
        let agent = agent(&self.endpoint);
        let (commit, files) = self.list(&agent, repository, only)?;
        let folder = self.cache.repository(repository);
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;

        let here = |file: &Remote| blobs.join(file.hash.hex()).exists();
        let bytes = files.iter().map(|file| file.size).sum();
        let mut done: u64 = files.iter().filter(|file| here(file)).map(|file| file.size).sum();
        self.check_space(&blobs, &files)?;
        let _ = on_event(Event::Planned { files: files.len(), bytes, here: done });
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
        let mut file = NamedTempFile::new_in(folder.join("refs")).map_err(Error::io(&reference))?;
        file.write_all(commit.as_bytes()).map_err(Error::io(&reference))?;
        file.persist(&reference).map_err(|e| Error::io(&reference)(e.error))?;
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
        let gb = |bytes: u64| ByteSize(bytes).display().si();
        Err(Error::file(
            blobs,
            format!(
                "{} are to be downloaded, {} are free on this disk; make room, or set HF_HOME to a folder on another",
                gb(needed),
                gb(free)
            ),
        ))
    }
}

/// Puts a blob under its name into a snapshot.
fn link(snapshot: &Path, file: &Remote) -> Result<()> {
    let path = snapshot.join(&file.name);
    let parent = folder_of(&path);
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

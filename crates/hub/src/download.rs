//! One file from the hub: taken up where it broke, compared with its hash, and only then given its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fs4::{FileExt, TryLockError};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::client::{ATTEMPTS, Hub};
use crate::error::{Error, Result, hub_error};
use crate::event::Event;
use crate::remote::{Hash, Remote};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// A file on its way.
pub(crate) struct Download<'a, 'b> {
    pub hub: &'a Hub,
    pub agent: &'a Agent,
    pub file: &'a Remote,
    pub url: String,
    /// Bytes of the files before this one.
    pub done: u64,
    /// Bytes of all files.
    pub bytes: u64,
    pub on_event: &'b mut dyn FnMut(Event) -> ControlFlow<()>,
}

impl Download<'_, '_> {
    /// Until the file is whole under its name.
    pub fn run(&mut self, blob: &Path) -> Result<()> {
        let part = incomplete(blob);
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part);
        let mut file = open.map_err(Error::io(&part))?;
        match FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(&part, "another download of this file is running; wait for it"));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&part)(error)),
        }
        let mut failures = 0;
        let mut mismatches = 0;
        loop {
            let before = length(&file, &part)?;
            let outcome = self.fetch(&mut file, &part)?;
            let after = length(&file, &part)?;
            let reason = match outcome {
                Outcome::Whole => match self.compare(&mut file, &part)? {
                    None => break,
                    Some(reason) => {
                        // Not one byte of it can be trusted.
                        file.set_len(0).map_err(Error::io(&part))?;
                        mismatches += 1;
                        if mismatches > 1 {
                            drop(file);
                            let _ = fs::remove_file(&part);
                            return Err(hub_error(
                                &self.url,
                                &format!(
                                    "{reason}, twice; nothing of it was kept. Something between here and the hub changes it"
                                ),
                            ));
                        }
                        reason
                    }
                },
                Outcome::Broken(reason) => reason,
            };
            failures = if after > before { 0 } else { failures + 1 };
            if failures == ATTEMPTS {
                return Err(hub_error(
                    &self.url,
                    &format!("{reason}; {after} of {} bytes are kept, pull again to go on", self.file.size),
                ));
            }
            let _ = (self.on_event)(Event::Retry { file: &self.file.name, reason: &reason });
            std::thread::sleep(self.hub.pause * (failures + 1));
        }
        file.sync_all().map_err(Error::io(&part))?;
        fs::rename(&part, blob).map_err(Error::io(blob))
    }

    /// Adds what is missing, as far as one connection goes.
    fn fetch(&mut self, file: &mut File, part: &Path) -> Result<Outcome> {
        let size = self.file.size;
        let mut at = length(file, part)?;
        if at > size {
            file.set_len(0).map_err(Error::io(part))?;
            at = 0;
        }
        if at == size {
            return Ok(Outcome::Whole);
        }
        let mut request = self.hub.authorized(self.agent.get(&self.url));
        if at > 0 {
            request = request.header("Range", format!("bytes={at}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Outcome::Broken(error.to_string())),
        };
        match response.status().as_u16() {
            206 => {
                // A server may give another part than was asked for.
                let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
                let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                at = start.filter(|&start: &u64| start <= at).unwrap_or(at);
            }
            200 => at = 0,
            500.. => return Ok(Outcome::Broken(format!("status {}", response.status().as_u16()))),
            416 => {
                file.set_len(0).map_err(Error::io(part))?;
                return Ok(Outcome::Broken("the hub has no such part of it".to_string()));
            }
            _ => {
                let repository = self.url.strip_prefix(&self.hub.endpoint).unwrap_or_default();
                let repository = repository.trim_start_matches('/').split("/resolve/").next().unwrap_or_default();
                return Err(self.hub.refused(repository, &self.url, &response));
            }
        }
        file.set_len(at).map_err(Error::io(part))?;
        file.seek(SeekFrom::Start(at)).map_err(Error::io(part))?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) => return Ok(Outcome::Broken(error.to_string())),
            };
            if at + read as u64 > size {
                return Ok(Outcome::Broken(format!("more came than the {size} bytes that were announced")));
            }
            file.write_all(&buffer[..read]).map_err(|error| disk_error(part, error))?;
            at += read as u64;
            let progress = Event::Progress { file: &self.file.name, done: self.done + at, bytes: self.bytes };
            if (self.on_event)(progress).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(if at == size { Outcome::Whole } else { Outcome::Broken(format!("the connection ended after {at} bytes")) })
    }

    /// What is wrong with the content.
    fn compare(&self, file: &mut File, part: &Path) -> Result<Option<String>> {
        file.seek(SeekFrom::Start(0)).map_err(Error::io(part))?;
        let found = match &self.file.hash {
            Hash::Sha256(_) => hashed(Sha256::new(), file),
            Hash::Git(_) => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {}\0", self.file.size));
                hashed(hash, file)
            }
        };
        let (found, expected) = (found.map_err(Error::io(part))?, self.file.hash.hex());
        Ok((found != expected).then(|| format!("expected a checksum of {expected}, found {found}")))
    }
}

enum Outcome {
    Whole,
    Broken(String),
}

fn hashed(mut hash: impl Digest, file: &mut File) -> io::Result<String> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn incomplete(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

fn length(file: &File, part: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(Error::io(part))?.len())
}

fn disk_error(part: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::file(
            part,
            format!("the disk is full ({error}); make room and pull again, it goes on where it stopped"),
        ),
        _ => Error::io(part)(error),
    }
}

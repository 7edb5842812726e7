//! Keys: 256 random bits each. The file has their digests, so that who reads it cannot use it.
//!
//! A line a key: `NAME SHA256 [weight=N] [admin]`. The secret is `nvk_NAME_...`, so that its line is found by name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use navicache_media::{WholeFile, read_text};
use subtle::ConstantTimeEq;

use crate::blobs::sha256;
use crate::id::random_bytes;
use crate::{Error, Result};

const PREFIX: &str = "nvk_";
/// Letters of 32 bytes in base 64.
const SECRET_LETTERS: usize = 43;
const NAME_MOST: usize = 32;

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Whose it is.
    pub name: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub digest: String,
    /// Its share of the device, against the others'.
    pub weight: f64,
    /// Whether it may set priorities and see everybody's jobs.
    pub is_admin: bool,
}

impl Key {
    fn line(&self) -> String {
        let mut line = format!("{} {}", self.name, self.digest);
        if self.weight != 1.0 {
            line += &format!(" weight={}", self.weight);
        }
        if self.is_admin {
            line += " admin";
        }
        line + "\n"
    }

    fn parse(line: &str) -> Result<Self, &'static str> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(digest)) = (words.next(), words.next()) else { return Err("expected NAME SHA256") };
        if !is_key_name(name) || digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("expected NAME SHA256");
        }
        let mut key = Key { name: name.to_string(), digest: digest.to_string(), weight: 1.0, is_admin: false };
        for word in words {
            match word.split_once('=') {
                None if word == "admin" => key.is_admin = true,
                Some(("weight", weight)) => {
                    key.weight = key_weight(weight).map_err(|_| "expected weight=NUMBER, more than 0")?;
                }
                _ => return Err("expected weight=NUMBER or admin"),
            }
        }
        Ok(key)
    }
}

/// The weight of a key.
///
/// # Errors
/// What is expected, where the text is none.
pub fn key_weight(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|weight: &f64| weight.is_finite() && *weight > 0.0);
    number.ok_or("expected a number more than 0")
}

fn is_key_name(name: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(is_letter)
}

/// Reads a file of keys.
///
/// # Errors
/// It is not there, or a line is none of a key.
pub fn read_keys(path: &Path) -> Result<Vec<Key>> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let key = |(index, line): (usize, &str)| {
        Key::parse(line).map_err(|reason| Error::Refused(format!("{}: line {}: {reason}", path.display(), index + 1)))
    };
    lines.map(key).collect()
}

/// Makes a key and adds it to a file, which is made where there is none. The secret is in nobody's hands but the
/// caller's.
///
/// # Errors
/// The name is none or taken, or the file cannot be written.
pub fn new_key(path: &Path, name: &str, weight: f64, is_admin: bool) -> Result<String> {
    if !is_key_name(name) {
        return Err(Error::Refused(format!("{name:?}: expected 1 to {NAME_MOST} of a-z, 0-9 and -")));
    }
    let mut keys = if path.exists() { read_keys(path)? } else { Vec::new() };
    if keys.iter().any(|key| key.name == name) {
        return Err(Error::Refused(format!("{}: there is a key {name} already; revoke it first", path.display())));
    }
    let secret = format!("{PREFIX}{name}_{}", URL_SAFE_NO_PAD.encode(random_bytes::<32>()));
    let digest = sha256(secret.as_bytes());
    keys.push(Key { name: name.to_string(), digest, weight, is_admin });
    write_keys(path, &keys)?;
    Ok(secret)
}

/// Takes a key out of a file.
///
/// # Errors
/// There is no such key, or the file cannot be written.
pub fn revoke_key(path: &Path, name: &str) -> Result<()> {
    let mut keys = read_keys(path)?;
    let before = keys.len();
    keys.retain(|key| key.name != name);
    if keys.len() == before {
        return Err(Error::Refused(format!("{}: there is no key {name}", path.display())));
    }
    write_keys(path, &keys)
}

/// Whole or not at all, for its owner alone.
fn write_keys(path: &Path, keys: &[Key]) -> Result<()> {
    let text: String = keys.iter().map(Key::line).collect();
    Ok(WholeFile::create_private(path)?.finish_with(text.as_bytes())?)
}

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Name of the key; empty where there are none.
    pub name: String,
    pub is_admin: bool,
}

/// Wrong keys from one address in a minute; those beyond are told to wait.
const FAILURES: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Addresses that are remembered.
const ADDRESSES: usize = 10_000;

/// Tells who a request comes from.
pub struct Keyring {
    path: Option<PathBuf>,
    held: Mutex<Held>,
    failures: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

struct Held {
    keys: HashMap<String, Key>,
    looked: Instant,
    changed: Option<SystemTime>,
}

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// No key, or a wrong one.
    Unknown,
    /// A wrong key, and too many others came from its address.
    TooMany,
}

impl Keyring {
    /// With the keys of a file; without one, everybody is let in.
    pub fn open(path: Option<PathBuf>) -> Result<Self> {
        let keys = path.as_deref().map(read_keys).transpose()?.unwrap_or_default();
        let keys = keys.into_iter().map(|key| (key.name.clone(), key)).collect();
        let changed = path.as_deref().and_then(modified);
        let held = Held { keys, looked: Instant::now(), changed };
        Ok(Keyring { path, held: Mutex::new(held), failures: Mutex::default() })
    }

    /// Weights of the keys.
    pub fn weights(&self) -> HashMap<String, f64> {
        self.held().keys.values().map(|key| (key.name.clone(), key.weight)).collect()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// Who sends `Authorization: Bearer SECRET`. A right key is let in whatever else comes from its address, which many
    /// share behind a proxy.
    pub fn caller(&self, authorization: Option<&str>, address: IpAddr) -> Result<Caller, Denied> {
        if self.path.is_none() {
            return Ok(Caller { name: String::new(), is_admin: true });
        }
        let Some(authorization) = authorization else { return Err(Denied::Unknown) };
        let secret = authorization.strip_prefix("Bearer ").unwrap_or_default().trim();
        match self.find(secret) {
            Some(key) => Ok(Caller { name: key.name, is_admin: key.is_admin }),
            None => Err(self.failed(address)),
        }
    }

    /// An unknown name costs the same comparison as a known one.
    fn find(&self, secret: &str) -> Option<Key> {
        let name = secret.strip_prefix(PREFIX).and_then(|rest| {
            let end = rest.len().checked_sub(SECRET_LETTERS + 1)?;
            rest.get(..end)
        });
        let digest = sha256(secret.as_bytes());
        let mut held = self.held();
        self.look_again(&mut held);
        let key = name.and_then(|name| held.keys.get(name));
        let known = key.map_or_else(|| "0".repeat(64), |key| key.digest.clone());
        let is_equal: bool = digest.as_bytes().ct_eq(known.as_bytes()).into();
        key.filter(|_| is_equal).cloned()
    }

    /// A key that was added or revoked counts within a second. What cannot be read leaves the keys as they are.
    fn look_again(&self, held: &mut Held) {
        let Some(path) = &self.path else { return };
        if held.looked.elapsed() < LOOK {
            return;
        }
        held.looked = Instant::now();
        let changed = modified(path);
        if changed == held.changed {
            return;
        }
        held.changed = changed;
        match read_keys(path) {
            Ok(keys) => held.keys = keys.into_iter().map(|key| (key.name.clone(), key)).collect(),
            Err(error) => eprintln!("navicache: the keys stay as they are: {error}"),
        }
    }

    /// Counts a wrong key, and says what is answered to it.
    fn failed(&self, address: IpAddr) -> Denied {
        let mut failures = self.failures.lock().unwrap_or_else(|broken| broken.into_inner());
        if failures.len() >= ADDRESSES {
            failures.retain(|_, (since, _)| since.elapsed() < MINUTE);
        }
        let entry = failures.entry(address).or_insert((Instant::now(), 0));
        if entry.0.elapsed() >= MINUTE {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
        if entry.1 > FAILURES { Denied::TooMany } else { Denied::Unknown }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|about| about.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_key_is_made_used_and_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let secret = new_key(&path, "ann-1", 2.0, true).unwrap();
        let other = new_key(&path, "bob", 1.0, false).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&secret));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(new_key(&path, "bob", 1.0, false).unwrap_err().to_string().contains("already"));
        assert!(new_key(&path, "../x", 1.0, false).is_err());

        let ring = Keyring::open(Some(path.clone())).unwrap();
        let caller = |secret: &str| ring.caller(Some(&format!("Bearer {secret}")), HERE);
        assert_eq!(caller(&secret), Ok(Caller { name: "ann-1".to_string(), is_admin: true }));
        assert_eq!(caller(&other), Ok(Caller { name: "bob".to_string(), is_admin: false }));
        assert_eq!(caller(&secret.replace("ann-1", "bob")), Err(Denied::Unknown));
        assert_eq!(ring.weights()["ann-1"], 2.0);

        revoke_key(&path, "bob").unwrap();
        assert!(revoke_key(&path, "bob").unwrap_err().to_string().contains("no key bob"));
        let ring = Keyring::open(Some(path)).unwrap();
        assert!(ring.caller(Some(&format!("Bearer {other}")), HERE).is_err());
    }

    #[test]
    fn guesses_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let secret = new_key(&path, "ann", 1.0, false).unwrap();
        let ring = Keyring::open(Some(path)).unwrap();
        for wrong in ["Bearer ", "Bearer nvk_", "Bearer nvk_\u{fc}_1", "Basic x"] {
            assert_eq!(ring.caller(Some(wrong), HERE), Err(Denied::Unknown), "{wrong:?}");
        }
        let guess = |address| ring.caller(Some("Bearer nvk_ann_x"), address);
        for _ in 4..FAILURES {
            assert_eq!(guess(HERE), Err(Denied::Unknown));
        }
        assert_eq!(guess(HERE), Err(Denied::TooMany));
        assert_eq!(guess("10.0.0.1".parse().unwrap()), Err(Denied::Unknown), "another address");
        assert!(ring.caller(Some(&format!("Bearer {secret}")), HERE).is_ok(), "a right key is let in all the same");
        assert_eq!(ring.caller(None, HERE), Err(Denied::Unknown), "no key is no guess");
        assert!(Keyring::open(None).unwrap().caller(None, HERE).unwrap().is_admin);
    }

    #[test]
    fn lines_that_are_none() {
        let digest = "0".repeat(64);
        for wrong in [
            "ann",
            "ann xyz",
            &format!("ann {digest} weight=0"),
            &format!("ann {digest} root"),
            &format!("Ann {digest}"),
        ] {
            assert!(Key::parse(wrong).is_err(), "{wrong}");
        }
        let line = format!("ann {digest} weight=2.5 admin\n");
        assert_eq!(Key::parse(&line).unwrap().line(), line);
    }
}

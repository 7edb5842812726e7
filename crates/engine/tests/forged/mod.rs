//! A checkpoint in somebody's hands who knows how its digest is made.

use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A checkpoint, in a folder of its own.
pub struct Forger {
    pub folder: TempDir,
    pub bytes: Vec<u8>,
}

impl Forger {
    pub fn of(bytes: Vec<u8>) -> Self {
        Forger { folder: tempfile::tempdir().unwrap(), bytes }
    }

    pub fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("cats.ckpt");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Header and tensors.
    pub fn parts(&self) -> (Value, Vec<u8>) {
        let length = u64::from_le_bytes(self.bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&self.bytes[8..8 + length]).unwrap(), self.bytes[8 + length..].to_vec())
    }

    /// The file after a change that its digest knows of.
    pub fn forged(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> PathBuf {
        let (mut header, mut data) = self.parts();
        change(&mut header, &mut data);
        let mut text = header.to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &data[..data.len() - 32]].concat();
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        self.write(&bytes)
    }

    /// The same of one of the texts in its header.
    pub fn edited(&self, what: &str, from: &str, to: &str) -> PathBuf {
        self.forged(|header, data| {
            if what == "state" {
                // It is the last before the digest.
                let start = header[what]["data_offsets"][0].as_u64().unwrap() as usize;
                let text = String::from_utf8(data[start..data.len() - 32].to_vec()).unwrap();
                assert!(text.contains(from), "{from} is not in {text:.500}");
                let text = text.replacen(from, to, 1);
                let end = start + text.len();
                data.splice(start..data.len() - 32, text.into_bytes());
                header[what] = json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]});
                header["sha256"]["data_offsets"] = json!([end, end + 32]);
                return;
            }
            let text = header["__metadata__"][what].as_str().unwrap().to_string();
            assert!(text.contains(from), "{from} is not in {text:.500}");
            header["__metadata__"][what] = text.replacen(from, to, 1).into();
        })
    }
}

//! A checkpoint whose header's length and digest are always right: whatever it says, a run refuses it or goes on.
#![no_main]

use std::ops::ControlFlow;
use std::sync::OnceLock;

use navicache_engine::{LoadOptions, Pipeline, Request, Resume, generate};
use sha2::{Digest, Sha256};

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    let pipeline = PIPELINE.get_or_init(|| Pipeline::open("demo", &LoadOptions::default()).unwrap());
    let (data, header) = input;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data as usize, 0);
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    let path = std::env::temp_dir().join(format!("navicache-fuzz-{}.ckpt", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let resume = Some(Resume { path, allow_other_build: true });
    let _ = generate(pipeline, &Request { resume, ..Request::default() }, &mut |_| ControlFlow::Break(()));
});

//! A picture, whichever of PNG, JPEG and WebP it begins like.
#![no_main]

mod check;

use navicache_media::Picture;

const BEGINNINGS: [&[u8]; 4] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\x00\x00\x00WEBP"];

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let bytes = [BEGINNINGS[input.0 as usize % BEGINNINGS.len()], input.1].concat();
    let _ = check::in_file("picture", &bytes, Picture::open);
});

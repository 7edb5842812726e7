//! Videos that other programs wrote, beside ffmpeg's own decoding of them: `tests/golden/videos`, made by
//! `tools/video/corpus.py`.

use std::path::{Path, PathBuf};

use navicache_media::video::{self, Reader};
use navicache_media::{Clip, Rate, Result};

/// Furthest that a value may be from ffmpeg's, in grey levels.
const LEVELS: u8 = 2;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/videos").join(name)
}

/// ffmpeg's frames: one PNG, one below the other.
fn expected(name: &str) -> (usize, Vec<u8>) {
    let file = std::io::BufReader::new(std::fs::File::open(golden(&format!("{name}.png"))).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    (info.width as usize, pixels)
}

fn read(path: &Path) -> Result<Clip> {
    video::read(path)
}

#[test]
fn frames_are_those_of_ffmpeg() {
    let files = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path());
    let mut checked = 0;
    for path in files.filter(|path| path.extension().is_some_and(|ending| ending == "mp4" || ending == "y4m")) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !golden(&format!("{name}.png")).exists() {
            continue; // refused: below
        }
        let clip = read(&path).unwrap();
        let (width, pixels) = expected(&name);
        assert_eq!((clip.width, clip.frames.len()), (width, pixels.len()), "{name}: frames of another size or number");
        let furthest = clip.frames.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(furthest <= Some(LEVELS), "{name}: {furthest:?} grey levels from ffmpeg's frames");
        checked += 1;
    }
    assert_eq!(checked, READ, "clips with frames");
}

/// How many of the clips are read.
const READ: usize = 17;

#[test]
fn other_codecs_and_profiles_are_refused_by_name() {
    for (name, reason) in [
        ("ten-bits", "10 bits a channel"),
        ("chroma-422", "4:2:2 chroma"),
        ("chroma-444", "4:4:4 chroma"),
        ("lossless", "High 4:4:4 Predictive"),
        ("interlaced", "interlaced"),
        ("mpeg4-part-2", "MPEG-4 Part 2, or older (mp4v)"),
        ("hevc-hvc1", "H.265 (HEVC) (hvc1)"),
        ("av1", "AV1 (av01)"),
        ("vp9", "VP9 (vp09)"),
    ] {
        let path = golden(&format!("{name}.mp4"));
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(reason) && message.contains("ffmpeg -i FILE frames/%d.png"), "{name}: {message}");
        assert!(message.contains(&format!("{name}.mp4")), "{message}");
    }
}

#[test]
fn a_stream_is_described_once() {
    use navicache_media::video::{Matrix, Range};
    let stream = |name: &str| *Reader::open(&golden(name)).unwrap().stream();
    let turned = stream("turned-90.mp4");
    assert_eq!(((turned.width, turned.height), turned.shown(), turned.fps), ((64, 48), (48, 64), Some(8.0)));
    assert_eq!(
        stream("cut-0.5-0.5.mp4").frames.map(|n| n as f64 / 8.0),
        stream("cut-0.5-0.5.mp4").frames.zip(stream("cut-0.5-0.5.mp4").fps).map(|(n, fps)| n as f64 / fps)
    );
    for (name, matrix, range) in [
        ("colours-not-said.mp4", Matrix::Bt601, Range::Limited),
        ("colours-bt709-tv.mp4", Matrix::Bt709, Range::Limited),
        ("colours-bt709-pc.mp4", Matrix::Bt709, Range::Full),
        ("colours-smpte170m-tv.mp4", Matrix::Bt601, Range::Limited),
        ("colours-bt2020nc-tv.mp4", Matrix::Bt2020, Range::Limited),
        ("y4m-yuv420p-pc.y4m", Matrix::Bt601, Range::Full),
    ] {
        let colours = stream(name).colours;
        assert_eq!((colours.matrix, colours.range), (matrix, range), "{name}");
    }
}

#[test]
fn counts_that_the_file_has_no_bytes_for_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(golden("x264-default.mp4")).unwrap();
    let spoil = |kind: &[u8; 4], at: usize, words: &[u32]| {
        let mut bytes = whole.clone();
        let place = bytes.windows(4).position(|window| window == kind).unwrap() + 4 + at;
        for (i, word) in words.iter().enumerate() {
            bytes[place + 4 * i..][..4].copy_from_slice(&word.to_be_bytes());
        }
        let path = folder.path().join("a.mp4");
        std::fs::write(&path, bytes).unwrap();
        read(&path).unwrap_err().to_string()
    };
    for count in [100_000_000, 0xffff_fffe] {
        // Version and flags come first; then one size for all and their number.
        assert!(spoil(b"stsz", 4, &[1, count]).contains("more than the file has bytes for"), "{count}");
    }
    assert!(spoil(b"stsz", 4, &[0, 0xffff_fffe]).contains("stsz"));
    assert!(spoil(b"stts", 4, &[0xffff_fffe]).contains("stts"));
    assert!(spoil(b"stsc", 4, &[0xffff_fffe]).contains("stsc"));
    assert!(spoil(b"stco", 8, &[0xffff_0000]).contains("the file ends before its last frame"));
    let fragments = std::fs::read(golden("fragments-frag_keyframe+empty_moov+default_base_moof.mp4")).unwrap();
    let run = fragments.windows(4).position(|window| window == b"trun").unwrap() + 4;
    let mut bytes = fragments.clone();
    bytes[run..run + 8].copy_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xfe]); // nothing said of each sample
    let path = folder.path().join("a.mp4");
    std::fs::write(&path, bytes).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("more than the file has bytes for"));
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["x264-default.mp4", "fragments-frag_keyframe.mp4", "cut-0.5-0.5.mp4", "y4m-yuv420p-pc.y4m"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let path = folder.path().join(name);
        for length in [0, 1, 7, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "{name} cut to {length} bytes");
        }
        for flip in (0..whole.len()).step_by(whole.len() / 150 + 1) {
            let mut spoiled = whole.clone();
            spoiled[flip] ^= 0xff;
            std::fs::write(&path, spoiled).unwrap();
            let _ = read(&path); // whatever it says, it returns
        }
    }
}

#[test]
fn numbered_pictures_are_read_as_people_count() {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=12u8 {
        let file = std::fs::File::create(folder.path().join(format!("{number}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&[number; 3]).unwrap();
    }
    let clip = read(folder.path()).unwrap();
    let numbers: Vec<u8> = clip.frames.iter().step_by(3).copied().collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_folder_of_vast_pictures_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("1.png")).unwrap();
    let mut encoder = png::Encoder::new(file, 16384, 16384);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("found 16384x16384"));
}

#[cfg(unix)]
#[test]
fn what_never_ends_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for ending in ["mp4", "y4m", "safetensors"] {
        let link = folder.path().join(format!("zero.{ending}"));
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert!(read(&link).unwrap_err().to_string().contains("is no regular file"), "{ending}");
        let pipe = folder.path().join(format!("pipe.{ending}"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe).unwrap_err().to_string().contains("is no regular file"), "{ending}");
    }
}

#[test]
fn what_is_written_has_the_same_colours_for_every_reader() {
    let folder = tempfile::tempdir().unwrap();
    let colour = [200, 40, 90];
    let clip = Clip { width: 32, height: 32, fps: None, frames: colour.repeat(32 * 32 * 2) };
    for (name, matrix) in [("a.mp4", video::Matrix::Bt709), ("a.y4m", video::Matrix::Bt601)] {
        let path = folder.path().join(name);
        clip.save(&path, Rate::whole(8), video::Scale::NONE).unwrap();
        assert_eq!(Reader::open(&path).unwrap().stream().colours.matrix, matrix, "{name}");
        let found = read(&path).unwrap();
        let close = found.frames.chunks_exact(3).all(|pixel| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 4));
        assert!(close, "{name}: {:?}", &found.frames[..3]);
    }
    // The container says it once more, for readers that do not look into the stream.
    let written = std::fs::read(folder.path().join("a.mp4")).unwrap();
    assert!(written.windows(8).any(|window| window == b"colrnclx"));
}

//! Weight files that mean harm: each gets an error, at once and without memory to speak of. One test, so that the
//! process's memory is its own.

use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use navicache_engine::inspect::inspect;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What a reader may take beyond what the process has at its start.
const MEMORY_MAX: u64 = 100 << 20;
const TIME_MAX: Duration = Duration::from_secs(1);

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn archive(entries: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(compression)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pickle(program: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", program), ("a/data/0", &[0; 64])], CompressionMethod::Stored)
}

/// A file of PyTorch's old kind: what describes tensors, the storages' names, and the storages.
fn old(properties: &[u8], described: &[u8], names: &[u8], storages: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    [head, properties, described, names, storages].concat()
}

/// A tensor of the storage "0", with a shape and strides as pickled tuples.
fn described(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tensor: [&[u8]; 6] = [
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ",
        offset,
        shape,
        strides,
        b"\x89}tR",
        b"s.",
    ];
    tensor.concat()
}

/// A list in a list, and so on; then a name that is refused.
fn nested(depth: usize) -> Vec<u8> {
    [&b"]".repeat(depth)[..], &b"a".repeat(depth - 1), b"cposix\nsystem\n."].concat()
}

/// A list of a thousand pairs, and a dictionary made of it a hundred thousand times.
fn pairs() -> Vec<u8> {
    let list = [&b"\x80\x02]("[..], &b"NN\x86".repeat(1000), b"e\x85q\x000ccollections\nOrderedDict\nq\x010"].concat();
    [list, b"h\x01h\x00R".repeat(100_000), b".".to_vec()].concat()
}

/// A dictionary of a thousand dictionaries, all one, of a thousand, and so on: a billion values of a few thousand
/// bytes.
fn laughs() -> Vec<u8> {
    let mut program = b"\x80\x02}q\x00".to_vec();
    for level in 1..5u8 {
        program.extend(b"0}(");
        for key in 0..1000u32 {
            program.extend(b"X\x04\x00\x00\x00");
            program.extend(format!("{key:04}").as_bytes());
            program.extend([b'h', level - 1]);
        }
        program.extend([b'u', b'q', level]);
    }
    program.push(b'.');
    program
}

fn gguf(tensors: u64, pairs: u64, rest: &[u8]) -> Vec<u8> {
    [&b"GGUF\x03\x00\x00\x00"[..], &tensors.to_le_bytes(), &pairs.to_le_bytes(), rest].concat()
}

/// A tensor of a shape, a format and an offset.
fn gguf_tensor(shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut rest = [&1u64.to_le_bytes()[..], b"w", &(shape.len() as u32).to_le_bytes()].concat();
    shape.iter().for_each(|n| rest.extend(n.to_le_bytes()));
    rest.extend(kind.to_le_bytes());
    rest.extend(offset.to_le_bytes());
    rest.resize(rest.len() + 64, 0);
    gguf(1, 0, &rest)
}

/// An archive whose directory says that an entry goes on beyond the end. Found by fuzzing.
fn beyond() -> Vec<u8> {
    let mut bytes = pickle(&described(b"K\x00", b"K\x04\x85", b"K\x01\x85"));
    let entry = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    for size in [20, 24] {
        bytes[entry + size..][..4].copy_from_slice(&0x7fff_ff00u32.to_le_bytes());
    }
    bytes
}

fn files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let one = |offsets: &str, shape: &str| {
        format!(r#"{{"w": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    let overlapping = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#;
    let mut header_of_2_60 = safetensors("{}", 0);
    header_of_2_60[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let many = (0..60_000).map(|i| format!(r#""{i}": {{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}"#));
    let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
    let system = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch PWNED1\x85R.";
    let stack_global = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch PWNED1\x85R.";
    let bomb = vec![0u8; 200 << 20];
    let little = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    let big = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x89s.";
    let four = described(b"K\x00", b"K\x04\x85", b"K\x01\x85");
    let (zero, none) = (b"\x80\x02]X\x01\x00\x00\x000a.", b"\x80\x02].");
    let part = four.iter().position(|&byte| byte == b'Q').map(|at| [&four[..at - 1], b")", &four[at - 1..]].concat());
    let storage = |count: u64| [&count.to_le_bytes()[..], &[0; 12]].concat();
    let text_of = |length: u64| [&length.to_le_bytes()[..], b"x"].concat();
    vec![
        ("overlap.safetensors", safetensors(overlapping, 12), "not a whole safetensors"),
        ("overflow.safetensors", safetensors(&one("[0, 18446744073709551615]", "[4]"), 16), "not a whole safetensors"),
        ("backwards.safetensors", safetensors(&one("[16, 0]", "[4]"), 16), "not a whole safetensors"),
        (
            "shape.safetensors",
            safetensors(&one("[0, 16]", "[4294967296, 4294967296, 4294967296]"), 16),
            "not a whole safetensors",
        ),
        ("beyond.safetensors", safetensors(&one("[0, 4000000000]", "[1000000000]"), 16), "not a whole safetensors"),
        ("header.safetensors", header_of_2_60, "1152921504606846976"),
        ("many.safetensors", safetensors(&many, 4), "not a whole safetensors"),
        (
            "deep.safetensors",
            safetensors(&format!("{}{}", "{\"a\":".repeat(100_000), "1"), 0),
            "not a whole safetensors",
        ),
        (
            "dtype.safetensors",
            safetensors(r#"{"w": {"dtype": "X9", "shape": [], "data_offsets": [0, 0]}}"#, 0),
            "not a whole safetensors",
        ),
        ("system.pth", pickle(system), "posix.system, which is refused"),
        ("system4.pth", pickle(stack_global), "os.system, which is refused"),
        (
            "eval.pth",
            pickle(b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R."),
            "__builtin__.eval, which is refused",
        ),
        ("object.pth", pickle(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "0x81"),
        ("build.pth", pickle(b"\x80\x02]}b."), "no dictionary"),
        ("nested.pth", pickle(&nested(400_000)), "posix.system"),
        ("values.pth", pickle(&b")".repeat(4 << 20)), "values"),
        ("stack.pth", pickle(&[&b")"[..], &b"2".repeat(4 << 20)].concat()), "values"),
        ("memo.pth", pickle(&[&b")"[..], &b"\x94".repeat(4 << 20)].concat()), "values"),
        ("pairs.pth", pickle(&pairs()), "values"),
        ("laughs.pth", pickle(&laughs()), "tensors"),
        ("empty_stack.pth", pickle(b"\x80\x02R."), "stack is empty"),
        ("cut.pth", pickle(b"\x80\x02X\xff\xff\xff\xffabc"), "cut short"),
        (
            "large.pth",
            pickle(&described(b"K\x00", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"J\xff\xff\xff\x7fK\x01\x86")),
            "does not fit",
        ),
        ("offset.pth", pickle(&described(b"J\xff\xff\xff\x7f", b"K\x04\x85", b"K\x01\x85")), "does not fit"),
        ("negative.pth", pickle(&described(b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85")), "unknown way"),
        ("strides.pth", pickle(&described(b"K\x00", b"K\x02K\x02\x86", b"K\x01K\x02\x86")), "not contiguous"),
        (
            "no_storage.pth",
            archive(&[("a/data.pkl", &described(b"K\x00", b"K\x04\x85", b"K\x01\x85"))], CompressionMethod::Stored),
            "are not there",
        ),
        ("no_pickle.pth", archive(&[("a/b", b"c")], CompressionMethod::Stored), "without data.pkl"),
        ("bomb.pth", archive(&[("a/data.pkl", &bomb)], CompressionMethod::Deflated), "is compressed"),
        ("beyond.pth", beyond(), "beyond the end of the file"),
        ("cut_zip.pth", pickle(system)[..60].to_vec(), "not a whole zip archive"),
        ("old_system.pth", old(little, system, zero, &[]), "posix.system, which is refused"),
        ("old_big.pth", old(big, &four, zero, &storage(3)), "big-endian"),
        ("old_cut.pth", old(little, &four, zero, &storage(4)), "beyond the end of the file"),
        ("old_vast.pth", old(little, &four, zero, &storage(u64::MAX)), "beyond the end of the file"),
        ("old_short.pth", old(little, &four, zero, &storage(3)), "does not fit"),
        ("old_unnamed.pth", old(little, &four, none, &storage(3)), "are not there"),
        ("old_headless.pth", old(little, &[], &[], &[]), "cut short"),
        ("old_part.pth", old(little, &part.unwrap(), zero, &storage(3)), "a part of another"),
        ("tensors.gguf", gguf(u64::MAX, 0, &[0; 64]), "cannot be in the 72 bytes"),
        ("pairs.gguf", gguf(0, 1 << 40, &[0; 64]), "cannot be in the 64 bytes"),
        ("text.gguf", gguf(0, 1, &text_of(1 << 62)), "cannot be"),
        (
            "array.gguf",
            gguf(
                0,
                1,
                &[
                    &1u64.to_le_bytes()[..],
                    b"k",
                    &9u32.to_le_bytes(),
                    &10u32.to_le_bytes(),
                    &(1u64 << 60).to_le_bytes(),
                ]
                .concat(),
            ),
            "cannot be in",
        ),
        (
            "arrays.gguf",
            gguf(
                0,
                1,
                &[&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes(), &9u32.to_le_bytes(), &1u64.to_le_bytes()]
                    .concat(),
            ),
            "arrays of arrays",
        ),
        ("shape.gguf", gguf_tensor(&[1 << 40, 1 << 40], 0, 0), "larger than any file"),
        ("dimensions.gguf", gguf_tensor(&[1; 9], 0, 0), "at most 8 dimensions"),
        ("offset.gguf", gguf_tensor(&[4], 0, u64::MAX - 31), "beyond the end"),
        ("block.gguf", gguf_tensor(&[100], 12, 0), "whole blocks of 256"),
        ("kind.gguf", gguf_tensor(&[4], 999, 0), "number format 999"),
        ("version.gguf", b"GGUF\xff\xff\xff\xff".to_vec(), "expected 2 or 3"),
        ("empty.gguf", Vec::new(), "an empty file"),
    ]
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    peak.unwrap_or(0) << 10
}

#[test]
fn files_that_mean_harm() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<(&str, &str)> = files()
        .into_iter()
        .map(|(name, bytes, part)| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            (name, part)
        })
        .collect();
    // The peak so far is that of making the files; what counts is what comes on top of a fresh one.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = peak_memory();
    for (name, part) in names {
        let clock = Instant::now();
        let message = inspect(folder.path().join(name).to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains(name), "{name}: {message}");
        assert!(message.len() < 1000, "{name}: {message}");
        assert!(clock.elapsed() < TIME_MAX, "{name} took {:?}", clock.elapsed());
        assert!(peak_memory() - before < MEMORY_MAX, "{name}: {} MB", (peak_memory() - before) >> 20);
    }
    assert!(!std::path::Path::new("PWNED").exists());
}

//! Checkpoints of the published shapes. 1.3B in bf16: it loads, and a step stays within 1.4 times its size. 14B,
//! quantised or streamed: a step stays within 12 GiB.
//!
//! Each needs a process of its own, for the peak of its memory:
//!
//!     cargo test --release -p navicache-study --test large published_size -- --ignored --nocapture
//!     cargo test --release -p navicache-study --test large quantised -- --ignored --nocapture
//!     cargo test --release -p navicache-study --test large streamed -- --ignored --nocapture
//!     cargo test --release -p navicache-study --test large hunyuan -- --ignored --nocapture

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use navicache_engine::models::hunyuan;
use navicache_engine::models::wan::{Transformer, TransformerConfig};
use navicache_engine::models::{Denoiser, Precision, Weights};
use navicache_engine::noise;
use navicache_engine::weights::{Found, Residence, Tensors};
use navicache_study::bench::wan_shapes;

const TEXT: usize = 4096;

/// What the sizes differ in.
struct Size {
    heads: usize,
    layers: usize,
    ffn: usize,
}

/// Wan2.1-T2V-1.3B.
const SMALL: Size = Size { heads: 12, layers: 30, ffn: 8960 };
/// Wan2.1-T2V-14B.
const LARGE: Size = Size { heads: 40, layers: 40, ffn: 13824 };

impl Size {
    fn config(&self) -> TransformerConfig {
        let Size { heads, layers, ffn } = self;
        let json = serde_json::json!({"num_attention_heads": heads, "num_layers": layers, "ffn_dim": ffn});
        serde_json::from_value(json).unwrap()
    }

    /// Names and shapes of the weights.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        wan_shapes(&self.config()).into_iter().collect()
    }
}

fn small_noise() -> Vec<f32> {
    noise::randn(0, 1 << 20).iter().map(|v| 0.02 * v).collect()
}

/// Writes as many bytes, the same over and over.
fn repeat(file: &mut impl Write, bytes: &[u8], mut left: usize) {
    while left > 0 {
        let n = left.min(bytes.len());
        file.write_all(&bytes[..n]).unwrap();
        left -= n;
    }
}

/// Writes small random numbers in bf16 without holding them all; returns the size of the tensors in bytes.
fn write_safetensors(path: &Path, shapes: &[(String, Vec<usize>)]) -> u64 {
    let mut header = serde_json::Map::new();
    let mut end = 0usize;
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let noise: Vec<u8> = small_noise().iter().map(|v| (v.to_bits() >> 16) as u16).flat_map(u16::to_le_bytes).collect();
    repeat(&mut file, &noise, end);
    file.flush().unwrap();
    end as u64
}

/// The same in GGUF: matrices in Q4_K, the rest in f32.
fn write_gguf(path: &Path, size: &Size) -> u64 {
    const ALIGNMENT: usize = 32;
    let noise = small_noise();
    let wide: Vec<u8> = noise.iter().flat_map(|v| v.to_le_bytes()).collect();
    let noise = Tensor::from_vec(noise, (1 << 12, 1 << 8), &Device::Cpu).unwrap();
    let narrow = QTensor::quantize(&noise, GgmlDType::Q4K).unwrap().data().unwrap().into_owned();
    let tensors: Vec<(String, Vec<usize>, bool, usize)> = size
        .shapes()
        .into_iter()
        .map(|(name, shape)| {
            let numbers: usize = shape.iter().product();
            let is_matrix = shape.len() == 2;
            (name, shape, is_matrix, if is_matrix { numbers / 256 * 144 } else { 4 * numbers })
        })
        .collect();
    let mut header =
        [b"GGUF", &3u32.to_le_bytes()[..], &(tensors.len() as u64).to_le_bytes(), &0u64.to_le_bytes()].concat();
    let mut offset = 0;
    for (name, shape, is_matrix, length) in &tensors {
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| header.extend((n as u64).to_le_bytes()));
        header.extend(if *is_matrix { 12u32 } else { 0 }.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += length.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&header).unwrap();
    for (_, _, is_matrix, length) in &tensors {
        repeat(&mut file, if *is_matrix { &narrow } else { &wide }, *length);
        repeat(&mut file, &[0], length.next_multiple_of(ALIGNMENT) - length);
    }
    file.flush().unwrap();
    offset as u64
}

/// Most memory this process has held resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// One forward of some tokens; gives its seconds.
fn forward(transformer: &Transformer, latents: [usize; 5]) -> f64 {
    let randn = |seed, shape: &[usize]| {
        Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let cond = transformer.cond(&randn(1, &[1, 512, TEXT])).unwrap();
    let clock = std::time::Instant::now();
    let velocity = transformer.forward(&randn(2, &latents), 999.0, &cond).unwrap();
    let seconds = clock.elapsed().as_secs_f64();
    let sum = velocity.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(sum.is_finite() && sum > 0.0);
    seconds
}

#[test]
#[ignore = "needs 6 GB of memory and 3 GB of disk"]
fn a_step_of_the_published_size_stays_near_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let size = write_safetensors(&folder.path().join("diffusion_pytorch_model.safetensors"), &SMALL.shapes());
    let files = Tensors::open(folder.path(), "diffusion_pytorch_model").unwrap();
    let transformer = Transformer::new(&SMALL.config(), as_published(&files)).unwrap();
    let loaded = peak_bytes();
    let seconds = forward(&transformer, [1, 16, 9, 26, 30]);
    let ratio = peak_bytes() as f64 / size as f64;
    println!(
        "weights {size} bytes; peak after loading {loaded}, after a forward {} ({ratio:.2} times); forward {seconds:.1} s",
        peak_bytes()
    );
    assert!(ratio < 1.4, "{ratio:.2}");
}

/// As a pipeline of this size is read when nothing else is asked for.
fn as_published(files: &Tensors) -> Weights<'_> {
    Weights::new(files, &Device::Cpu, None).with_precision(Precision::Bf16)
}

/// Most memory that a step of 14B may take.
const LARGE_MEMORY: u64 = 12 << 30;

fn a_step_of_14b(path: &Path, weights: u64, residence: Residence) {
    let mut files = Found::open(&[path.to_path_buf()]).unwrap().tensors;
    files.reside(residence);
    let config = TransformerConfig::from_weights(&files, None).unwrap();
    assert_eq!((config.num_layers, config.num_attention_heads), (LARGE.layers, LARGE.heads));
    let transformer = Transformer::new(&config, as_published(&files)).unwrap();
    let loaded = peak_bytes();
    let seconds = forward(&transformer, [1, 16, 2, 16, 16]);
    println!(
        "weights {weights} bytes; peak after loading {loaded}, after a forward {}; forward {seconds:.1} s",
        peak_bytes()
    );
    assert!(peak_bytes() < LARGE_MEMORY, "{}", peak_bytes());
}

#[test]
#[ignore = "needs 12 GB of memory and 9 GB of disk"]
fn a_quantised_step_of_14b_fits_into_12_gib() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan-14b-Q4_K.gguf");
    let size = write_gguf(&path, &LARGE);
    a_step_of_14b(&path, size, Residence::Mapped);
}

#[test]
#[ignore = "needs 29 GB of disk"]
fn a_streamed_step_of_14b_fits_into_12_gib() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan-14b-bf16.safetensors");
    let size = write_safetensors(&path, &LARGE.shapes());
    a_step_of_14b(&path, size, Residence::Streamed);
}

/// Names and shapes of the published HunyuanVideo transformer, from those of the small one that the tests have.
fn hunyuan_shapes(config: &hunyuan::TransformerConfig) -> Vec<(String, Vec<usize>)> {
    let index = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hunyuan/index.json");
    let index: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
    // Widths of the small one, of which all that matter differ but two, told apart by name.
    let dim = config.dim();
    let widths = BTreeMap::from([
        (40, dim),
        (160, 4 * dim),
        (200, 5 * dim),
        (80, 2 * dim),
        (120, 3 * dim),
        (240, 6 * dim),
        (20, 128),
        (24, 4096),
    ]);
    let widened = |name: &str, n: usize| match n {
        16 if name.starts_with("proj_out") => 64,
        16 => 768,
        4 => 16,
        n => widths.get(&n).copied().unwrap_or(n),
    };
    let blocks =
        [("single_transformer_blocks.0.", config.num_single_layers), ("transformer_blocks.0.", config.num_layers)];
    let mut shapes = Vec::new();
    for (name, shape) in &index["transformer"] {
        let shape: Vec<usize> = shape.iter().map(|&n| widened(name, n)).collect();
        match blocks.iter().find(|(first, _)| name.starts_with(first)) {
            Some((first, count)) => shapes.extend(
                (0..*count).map(|i| (name.replacen(first, &first.replace('0', &i.to_string()), 1), shape.clone())),
            ),
            None if name.starts_with("transformer_blocks") || name.starts_with("single_transformer_blocks") => {}
            None => shapes.push((name.clone(), shape)),
        }
    }
    shapes
}

#[test]
#[ignore = "needs 26 GB of disk"]
fn a_block_of_hunyuan_video_fits_into_8_gib() {
    let folder = tempfile::tempdir().unwrap();
    let config = hunyuan::TransformerConfig::default();
    let shapes = hunyuan_shapes(&config);
    let (one, two) = shapes.split_at(shapes.len() / 2);
    let mut index = serde_json::Map::new();
    let mut size = 0;
    for (shard, part) in [("a.safetensors", one), ("b.safetensors", two)] {
        size += write_safetensors(&folder.path().join(shard), part);
        index.extend(part.iter().map(|(name, _)| (name.clone(), shard.into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    std::fs::write(folder.path().join("m.safetensors.index.json"), index.to_string()).unwrap();

    let files = Tensors::open(folder.path(), "m").unwrap();
    let transformer = hunyuan::Transformer::new(&config, as_published(&files)).unwrap();
    let loaded = peak_bytes();
    let randn = |seed, shape: &[usize]| {
        Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let cond = transformer.cond(&randn(1, &[1, 256, 4096]), &randn(2, &[1, 768]), 6.0).unwrap();
    // 5 x 20 x 40 tokens.
    let clock = std::time::Instant::now();
    let mut state = transformer.begin(&randn(3, &[1, 16, 5, 40, 80]), 999.0, &cond).unwrap();
    let block = transformer.units().iter().take_while(|unit| unit.block == 0).count();
    for unit in 0..block {
        transformer.run_unit(unit, &mut state).unwrap();
    }
    let seconds = clock.elapsed().as_secs_f64();
    let sum = transformer.features(&state).video.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(sum.is_finite() && sum > 0.0);
    println!(
        "{} numbers, {size} bytes; peak after loading {loaded}, after a block {}; {seconds:.1} s",
        files.parameters(),
        peak_bytes()
    );
    assert!(peak_bytes() < 8 << 30, "{}", peak_bytes());
}

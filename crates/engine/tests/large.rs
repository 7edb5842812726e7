//! A checkpoint of the published 1.3B transformer's shape, in bf16: it loads, and a step stays within 1.4 times its size.
//!
//! Needs 6 GB of memory and 3 GB of disk, and a minute:
//!
//!     cargo test --release -p navicache-engine --test large -- --ignored --nocapture

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{Device, Tensor};
use navicache_engine::models::wan::{Transformer, TransformerConfig};
use navicache_engine::models::{Denoiser, Weights};
use navicache_engine::noise;
use navicache_engine::weights::Tensors;

const CONFIG: &str = r#"{"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}"#;
const DIM: usize = 1536;
const FFN: usize = 8960;
const TEXT: usize = 4096;

/// Names and shapes of Wan2.1-T2V-1.3B.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = Vec::new();
    let mut linear = |name: String, outputs: usize, inputs: usize| {
        shapes.push((format!("{name}.weight"), vec![outputs, inputs]));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    for (name, outputs, inputs) in [
        ("time_embedder.linear_1", DIM, 256),
        ("time_embedder.linear_2", DIM, DIM),
        ("time_proj", 6 * DIM, DIM),
        ("text_embedder.linear_1", DIM, TEXT),
        ("text_embedder.linear_2", DIM, DIM),
    ] {
        linear(format!("condition_embedder.{name}"), outputs, inputs);
    }
    linear("proj_out".to_string(), 64, DIM);
    for block in 0..30 {
        for attention in ["attn1", "attn2"] {
            for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                linear(format!("blocks.{block}.{attention}.{layer}"), DIM, DIM);
            }
        }
        linear(format!("blocks.{block}.ffn.net.0.proj"), FFN, DIM);
        linear(format!("blocks.{block}.ffn.net.2"), DIM, FFN);
    }
    for block in 0..30 {
        for norm in [
            "attn1.norm_q.weight",
            "attn1.norm_k.weight",
            "attn2.norm_q.weight",
            "attn2.norm_k.weight",
            "norm2.weight",
            "norm2.bias",
        ] {
            shapes.push((format!("blocks.{block}.{norm}"), vec![DIM]));
        }
        shapes.push((format!("blocks.{block}.scale_shift_table"), vec![1, 6, DIM]));
    }
    shapes.push(("scale_shift_table".to_string(), vec![1, 2, DIM]));
    shapes.push(("patch_embedding.weight".to_string(), vec![DIM, 16, 1, 2, 2]));
    shapes.push(("patch_embedding.bias".to_string(), vec![DIM]));
    shapes
}

/// Writes small random numbers in bf16 without holding them all; returns the size of the tensors in bytes.
fn write(path: &Path) -> u64 {
    let mut header = serde_json::Map::new();
    let mut end = 0usize;
    for (name, shape) in shapes() {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let noise: Vec<u8> = noise::randn(0, 1 << 20)
        .iter()
        .map(|v| ((0.02 * v).to_bits() >> 16) as u16)
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut left = end;
    while left > 0 {
        let n = left.min(noise.len());
        file.write_all(&noise[..n]).unwrap();
        left -= n;
    }
    file.flush().unwrap();
    end as u64
}

/// Most memory this process has held resident.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

#[test]
#[ignore = "needs 6 GB of memory and 3 GB of disk"]
fn a_step_of_the_published_size_stays_near_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let size = write(&folder.path().join("diffusion_pytorch_model.safetensors"));
    let config: TransformerConfig = serde_json::from_str(CONFIG).unwrap();
    let files = Tensors::open(folder.path(), "diffusion_pytorch_model").unwrap();
    let transformer = Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
    let loaded = peak_bytes();

    let randn = |seed, shape: &[usize]| {
        Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let cond = transformer.cond(&randn(1, &[1, 512, TEXT])).unwrap();
    let clock = std::time::Instant::now();
    let velocity = transformer.forward(&randn(2, &[1, 16, 9, 26, 30]), 999.0, &cond).unwrap();
    let seconds = clock.elapsed().as_secs_f64();
    let sum = velocity.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(sum.is_finite() && sum > 0.0);

    let ratio = peak_bytes() as f64 / size as f64;
    println!(
        "weights {size} bytes; peak after loading {loaded}, after a forward {} ({ratio:.2} times); forward {seconds:.1} s",
        peak_bytes()
    );
    assert!(ratio < 1.4, "{ratio:.2}");
}

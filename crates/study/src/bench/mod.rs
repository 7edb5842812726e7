//! Benchmarks: the parts of a generation on random numbers of the published shapes, with medians and the share of the
//! machine's peak.
//!
//! Machines are shared: medians of several runs are reported, and the peak is measured in the same run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use navicache_engine::models::nn::{Linear, attention};
use navicache_engine::models::wan::{Transformer, TransformerConfig};
use navicache_engine::models::{Denoiser, Precision, Source, Weights};

use navicache_engine::{DeviceChoice, DtypeChoice, Pipeline, Request, Tiling, decode, generate, noise};

use crate::error::{Error, Result};

mod solver;
mod timing;

pub use timing::Timing;
use timing::{Run, grid, random, timed};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", parse_err_ty = Error, parse_err_fn = unknown)]
pub enum Part {
    /// A layer of Wan2.1-1.3B's feed-forward network, 1536 to 8960.
    Matmul,
    /// Attention of 12 heads of 128 channels among all tokens.
    Attention,
    /// A block of Wan2.1-1.3B, 512 text tokens.
    Block,
    /// Wan2.1-1.3B, all 30 blocks.
    Forward,
    /// A step that UniPC skips, on the latents of so many tokens: no model runs.
    Skip,
    /// What it does for two skipped steps once the next one is computed.
    Correction,
    /// Decoding with the VAE of a model.
    Vae,
    /// A generation with a model, from prompt to frames.
    EndToEnd,
}

impl Part {
    /// All of them, by name.
    pub const NAMES: &[&str] = <Part as strum::VariantNames>::VARIANTS;
}

fn unknown(found: &str) -> Error {
    Error::invalid("bench", found, format!("expected one of {}", Part::NAMES.join(", ")))
}

/// How it is timed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens of the video.
    pub tokens: usize,
    /// Format of the weights; f32 if it is left to be chosen.
    pub dtype: DtypeChoice,
    /// Runs that count.
    pub runs: usize,
    /// Where it runs.
    pub device: DeviceChoice,
}

/// Text tokens of the published models.
const TEXT_TOKENS: usize = 512;
const HEADS: usize = 12;
const HEAD_DIM: usize = 128;
const FFN: usize = 8960;
const LAYERS: usize = 30;

/// Times a part that needs no model.
pub fn run(part: Part, options: &Options) -> Result<Timing> {
    let Options { tokens, dtype, device, .. } = options;
    let (kept, device) = (dtype.for_parameters(0).unwrap_or(DType::F32), &device.open()?);
    let precision = dtype.precision(Some(kept), None);
    let options = &Run { tokens: *tokens, dtype: kept, precision, runs: options.runs, device: device.clone() };
    let (n, dim) = (*tokens as f64, (HEADS * HEAD_DIM) as f64);
    let drawn = |shape: &[usize]| random(1, shape, device);
    let weights = |source| Weights::new(source, device, Some(options.dtype)).with_precision(precision);
    match part {
        Part::Matmul => {
            let shapes = [("weight", vec![FFN, HEADS * HEAD_DIM]), ("bias", vec![FFN])];
            let shapes = Random { shapes: shapes.map(|(name, shape)| (name.to_string(), shape)).into(), seed: 2 };
            let layer = Linear::new(HEADS * HEAD_DIM, FFN, weights(&shapes))?;
            let x = drawn(&[*tokens, HEADS * HEAD_DIM])?;
            timed("linear 1536 -> 8960", Some(2.0 * n * dim * FFN as f64), options, || Ok(layer.forward(&x)?))
        }
        Part::Attention => {
            let x = drawn(&[HEADS, *tokens, HEAD_DIM])?;
            let scale = 1.0 / (HEAD_DIM as f64).sqrt();
            timed("attention, 12 heads of 128", Some(4.0 * n * n * dim), options, || {
                Ok(attention(&x, &x, &x, scale, None, precision)?)
            })
        }
        Part::Block | Part::Forward => {
            let layers = if part == Part::Block { 1 } else { LAYERS };
            let config = config(layers)?;
            let shapes = Random { shapes: wan_shapes(&config), seed: 3 };
            let transformer = Transformer::new(&config, weights(&shapes))?;
            let cond = transformer.cond(&drawn(&[1, TEXT_TOKENS, config.text_dim])?)?;
            let places @ [frames, rows, columns] = grid(*tokens);
            let options = &Run { tokens: frames * rows * columns, device: device.clone(), ..*options };
            let latents = drawn(&[1, 16, frames, 2 * rows, 2 * columns])?;
            let (n, text) = (options.tokens as f64, TEXT_TOKENS as f64);
            let per_block =
                12.0 * n * dim * dim + 4.0 * n * dim * FFN as f64 + 4.0 * n * n * dim + 4.0 * n * text * dim;
            let timing = match part {
                Part::Block => {
                    let mut state = transformer.begin(&latents, 500.0, &cond)?;
                    timed("block of Wan2.1-1.3B", Some(per_block), options, || {
                        let start = transformer.features(&state);
                        for unit in 0..transformer.units().len() {
                            transformer.run_unit(unit, &mut state)?;
                        }
                        let done = transformer.features(&state).video;
                        transformer.set_features(&mut state, start);
                        Ok(done)
                    })
                }
                _ => timed("forward of Wan2.1-1.3B", Some(per_block * LAYERS as f64), options, || {
                    Ok(transformer.forward(&latents, 500.0, &cond)?)
                }),
            };
            timing.map(|timing| Timing { grid: Some(places), ..timing })
        }
        Part::Skip => solver::skip(options),
        Part::Correction => solver::correction(options),
        Part::Vae | Part::EndToEnd => Err(Error::invalid("bench", "vae and end-to-end", "these need a model")),
    }
}

/// Times a part of a model.
pub fn run_on(part: Part, pipeline: &Pipeline, request: &Request, runs: usize) -> Result<Timing> {
    let resolved = pipeline.resolve(request)?;
    let shape = pipeline.latents_shape(&resolved);
    let (tokens, device) = (pipeline.tokens(&resolved), pipeline.device().clone());
    let options = Run { tokens, dtype: DType::F32, precision: Precision::F32, runs, device };
    let size = format!("{} frames of {}x{}", resolved.frames, resolved.width, resolved.height);
    let mut go_on = |_: navicache_engine::Event| ControlFlow::Continue(());
    let mut timing = match part {
        Part::Vae => {
            let latents = random(0, &shape, pipeline.device())?;
            let what = format!("VAE of {}, {size}", pipeline.name());
            timed(&what, None, &options, || {
                decode(pipeline, &latents, resolved.frames, Tiling::Auto, &mut go_on)?;
                Ok(latents.clone())
            })?
        }
        _ => timed(&format!("{}, {size}, {} steps", pipeline.name(), resolved.steps), None, &options, || {
            Ok(generate(pipeline, request, &mut go_on)?.latents)
        })?,
    };
    timing.dtype = match part {
        Part::Vae => pipeline.machine().vae,
        _ => pipeline.dtype_name(),
    };
    Ok(timing)
}

fn config(layers: usize) -> Result<TransformerConfig> {
    let json = serde_json::json!({"num_attention_heads": HEADS, "num_layers": layers, "ffn_dim": FFN});
    serde_json::from_value(json).map_err(|e| Error::file("bench", e.to_string()))
}

/// Random weights of given shapes, small enough for activations to stay finite.
struct Random {
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u64,
}

impl Source for Random {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    /// The same numbers over and over, of a few thousand that are drawn: drawing them all would take longer than the
    /// benchmark.
    fn load(&self, name: &str, dtype: Option<DType>, device: &Device) -> navicache_engine::models::Result<Tensor> {
        const DRAWN: usize = 1 << 14;
        let shape = self.shape(name).unwrap_or_default();
        let row: usize = shape.iter().skip(1).product();
        let scale = 1.0 / (row.max(1) as f32).sqrt();
        let drawn = noise::randn(self.seed, DRAWN);
        let values: Vec<f32> = drawn.iter().cycle().take(shape.iter().product()).map(|value| value * scale).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(dtype.unwrap_or(DType::F32))?.to_device(device)?)
    }

    fn place(&self, _: &str) -> String {
        "random weights".to_string()
    }
}

/// Names and shapes of a Wan transformer that makes video from text.
pub fn wan_shapes(config: &TransformerConfig) -> BTreeMap<String, Vec<usize>> {
    let (dim, ffn) = (config.dim(), config.ffn_dim);
    let mut shapes = BTreeMap::new();
    let mut linear = |name: String, outputs: usize, inputs: usize| {
        shapes.insert(format!("{name}.weight"), vec![outputs, inputs]);
        shapes.insert(format!("{name}.bias"), vec![outputs]);
    };
    for (name, outputs, inputs) in [
        ("time_embedder.linear_1", dim, config.freq_dim),
        ("time_embedder.linear_2", dim, dim),
        ("time_proj", 6 * dim, dim),
        ("text_embedder.linear_1", dim, config.text_dim),
        ("text_embedder.linear_2", dim, dim),
    ] {
        linear(format!("condition_embedder.{name}"), outputs, inputs);
    }
    let volume = config.patch_size.iter().product::<usize>();
    linear("proj_out".to_string(), config.out_channels * volume, dim);
    for block in 0..config.num_layers {
        for (attention, layer) in
            ["attn1", "attn2"].iter().flat_map(|a| ["to_q", "to_k", "to_v", "to_out.0"].map(|l| (a, l)))
        {
            linear(format!("blocks.{block}.{attention}.{layer}"), dim, dim);
        }
        linear(format!("blocks.{block}.ffn.net.0.proj"), ffn, dim);
        linear(format!("blocks.{block}.ffn.net.2"), dim, ffn);
    }
    for block in 0..config.num_layers {
        for norm in ["attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k", "norm2"] {
            shapes.insert(format!("blocks.{block}.{norm}.weight"), vec![dim]);
        }
        shapes.insert(format!("blocks.{block}.norm2.bias"), vec![dim]);
        shapes.insert(format!("blocks.{block}.scale_shift_table"), vec![1, 6, dim]);
    }
    let [pf, ph, pw] = config.patch_size;
    shapes.insert("patch_embedding.weight".to_string(), vec![dim, config.in_channels, pf, ph, pw]);
    shapes.insert("patch_embedding.bias".to_string(), vec![dim]);
    shapes.insert("scale_shift_table".to_string(), vec![1, 2, dim]);
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;
    use navicache_engine::LoadOptions;

    #[test]
    fn every_part_is_timed_and_says_so() {
        let options = Options { tokens: 24, dtype: DtypeChoice::Bf16, runs: 2, device: DeviceChoice::Cpu };
        for part in [Part::Matmul, Part::Attention, Part::Block] {
            let timing = run(part, &options).unwrap();
            assert_eq!((timing.runs.len(), timing.dtype.as_str()), (2, "bf16"));
            assert!(timing.median_seconds > 0.0 && timing.share_of_peak.is_some_and(|share| share > 0.0));
        }
        let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
        let request = Request { size: Some((16, 16).into()), frames: Some(1), steps: Some(1), ..Request::new("x") };
        for part in [Part::Vae, Part::EndToEnd] {
            let timing = run_on(part, &demo, &request, 1).unwrap();
            assert!(timing.median_seconds > 0.0 && timing.what.contains("1 frames of 16x16"), "{}", timing.what);
        }
        assert!("everything".parse::<Part>().unwrap_err().to_string().contains("matmul, attention"));
    }

    #[test]
    fn grids_have_as_many_tokens_or_a_few_more() {
        for (tokens, expected) in [
            (1560, [1, 39, 40]),
            (1755, [1, 39, 45]),
            (32760, [1, 180, 182]),
            (7, [7, 1, 1]),
            (1, [1, 1, 1]),
            (0, [1, 1, 1]),
            (1571, [11, 11, 13]),
        ] {
            assert_eq!(grid(tokens), expected, "{tokens}");
        }
    }
}

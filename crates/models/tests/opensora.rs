//! The parts of Open-Sora 1.2 against the reference implementation (hpcaitech/Open-Sora and transformers, f32, CPU), on
//! the same random weights: see `tools/golden/opensora.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use navicache_models::opensora::{Cond, Transformer, TransformerConfig, Vae, VaeConfig, VideoSize};
use navicache_models::text::t5::{self, T5};
use navicache_models::{Denoiser, Error, Part, Result, Signal, Source, Weights};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Weights that follow from their names.
struct Filled {
    component: &'static str,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Source for Filled {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn load(&self, name: &str, _: Option<DType>, device: &Device) -> Result<Tensor> {
        let shape = &self.shapes[name];
        let row: usize = shape.iter().skip(1).product();
        let one = if name.contains("norm") && !name.contains("bias") { 1.0 } else { 0.0 };
        let scale = (3.0 / row as f64).sqrt();
        let wide = shape.len() > 1 && row > 1;
        let values = numbers(&format!("{}.{name}", self.component), shape.iter().product());
        let values = values.map(|x| (if wide { x * scale } else { 0.1 * x + one }) as f32);
        Ok(Tensor::from_vec(values.collect(), &shape[..], device)?)
    }

    fn place(&self, _: &str) -> String {
        "a test".to_string()
    }
}

/// In [-1, 1), as the script has them.
fn numbers(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let mut state = name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ byte as u32).wrapping_mul(0x0100_0193));
    (0..count).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f64 / (1u32 << 31) as f64 - 1.0
    })
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let values = numbers(name, shape.iter().product()).map(|x| x as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/opensora")
}

fn read(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join(file)).unwrap()).unwrap()
}

fn expected(name: &str) -> Tensor {
    candle_core::safetensors::load(golden().join("expected.safetensors"), &Device::Cpu).unwrap()[name].clone()
}

fn weights(component: &'static str) -> Filled {
    Filled { component, shapes: serde_json::from_value(read("index.json")[component].take()).unwrap() }
}

/// The configuration of a component, with fields put in.
fn config_with<C: DeserializeOwned>(component: &str, fields: &[(&str, Value)]) -> C {
    let mut config = read("configs.json")[component].take();
    for (path, value) in fields {
        *config.pointer_mut(path).unwrap() = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

/// Of velocities the reference has the other sign.
fn is_close(found: &Tensor, name: &str) {
    let expected = expected(name);
    let expected = if name.starts_with("transformer") { expected.neg().unwrap() } else { expected };
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    let error = norm(&(found - &expected).unwrap()) / norm(&expected);
    assert!(error < 1e-5, "{name}: {error:.1e}");
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn transformer_of(weights: &Filled) -> Transformer {
    Transformer::new(&config_with("transformer", &[]), Weights::new(weights, &Device::Cpu, None)).unwrap()
}

/// With the published frequencies of the rotary embedding, which are not stored.
fn transformer() -> Transformer {
    let mut weights = weights("transformer");
    weights.shapes.remove("rope.freqs");
    transformer_of(&weights)
}

const TOKENS: usize = 7;
const WIDE: VideoSize = VideoSize { height: 32, width: 64, fps: 24.0 };
const ODD: VideoSize = VideoSize { height: 41, width: 58, fps: 8.0 };

fn cond(transformer: &Transformer, size: VideoSize) -> Cond {
    let text = tensor("text", &[1, 12, 20]).narrow(1, 0, TOKENS).unwrap();
    transformer.cond(&text, size).unwrap()
}

fn wide() -> Tensor {
    tensor("latents", &[1, 4, 3, 4, 8])
}

fn odd() -> Tensor {
    tensor("latents", &[1, 4, 2, 5, 7])
}

#[test]
fn text_encoder() {
    let ids = [9, 33, 5, 17, 60, 2, 1];
    let weights = weights("text_encoder");
    let w = || Weights::new(&weights, &Device::Cpu, None);
    // Neither the configuration's word nor that of the weights is needed if the other is there.
    for config in [config_with("text_encoder", &[]), t5::Config::from_weights(&weights).unwrap()] {
        is_close(&T5::new(&config, w()).unwrap().forward(&ids).unwrap(), "text.hidden");
    }
    let umt5: t5::Config = config_with("text_encoder", &[("/model_type", json!("umt5"))]);
    let missing = T5::new(&umt5, w()).err().unwrap().to_string();
    assert!(missing.contains("block.1") && missing.contains("relative_attention_bias"), "{missing}");
    let bert: t5::Config = config_with("text_encoder", &[("/model_type", json!("bert"))]);
    assert!(T5::new(&bert, w()).err().unwrap().to_string().contains("bert"));
}

#[test]
fn transformer_at_three_aspect_ratios() {
    let transformer = transformer();
    let forward = |latents: &Tensor, timestep: f64, size: VideoSize| {
        transformer.forward(latents, timestep, &cond(&transformer, size)).unwrap()
    };
    is_close(&forward(&wide(), 987.5, WIDE), "transformer.wide");
    is_close(&forward(&odd(), 421.25, ODD), "transformer.odd");
    let picture = VideoSize { height: 64, width: 32, fps: 120.0 };
    is_close(&forward(&tensor("latents", &[1, 4, 1, 8, 4]), 3.0, picture), "transformer.picture");
}

#[test]
fn transformer_without_a_text() {
    let transformer = transformer();
    let null = transformer.null_cond(TOKENS, WIDE).unwrap();
    is_close(&transformer.forward(&wide(), 987.5, &null).unwrap(), "transformer.null");
    assert!(transformer.null_cond(13, WIDE).err().unwrap().to_string().contains("at most 12"));
    assert!(transformer.null_cond(0, WIDE).is_err());
}

#[test]
fn transformer_of_frames_that_are_no_noise() {
    let transformer = transformer();
    let masked = |latents: &Tensor, timestep: f64, size: VideoSize, mask: &[bool]| {
        transformer.forward(latents, timestep, &cond(&transformer, size).with_frame_mask(mask))
    };
    is_close(&masked(&wide(), 987.5, WIDE, &[true, false, false]).unwrap(), "transformer.wide_masked");
    is_close(&masked(&odd(), 421.25, ODD, &[false, true]).unwrap(), "transformer.odd_masked");
    is_close(&masked(&odd(), 421.25, ODD, &[true, true]).unwrap(), "transformer.odd");
    assert!(matches!(masked(&odd(), 421.25, ODD, &[true]), Err(Error::Input { what: "mask of latent frames", .. })));
}

#[test]
fn stored_frequencies_of_the_rotary_embedding_count() {
    let transformer = transformer_of(&weights("transformer"));
    let velocity = transformer.forward(&wide(), 987.5, &cond(&transformer, WIDE)).unwrap();
    is_close(&velocity, "transformer.turned");
}

#[test]
fn a_forward_is_its_units() {
    use Part::{CrossAttn, Mlp, SpatialAttn, TemporalAttn};
    let transformer = transformer();
    let parts: Vec<(usize, Part)> = transformer.units().iter().map(|unit| (unit.block, unit.part)).collect();
    let pair = [SpatialAttn, CrossAttn, Mlp, TemporalAttn, CrossAttn, Mlp];
    assert_eq!(parts, [0, 1].map(|block| pair.map(|part| (block, part))).concat());
    let cond = cond(&transformer, ODD).with_frame_mask([false, true]);
    let mut state = transformer.begin(&odd(), 500.0, &cond).unwrap();
    for unit in 0..transformer.units().len() {
        // Taking the features out and putting them back, into a state of its own, changes nothing.
        let features = transformer.features(&state);
        assert_eq!(features.video.dims(), [2 * 3 * 4, transformer.width()]);
        state = transformer.begin(&odd(), 500.0, &cond).unwrap();
        transformer.set_features(&mut state, features);
        transformer.run_unit(unit, &mut state).unwrap();
    }
    let whole = transformer.forward(&odd(), 500.0, &cond).unwrap();
    assert_eq!(values(&transformer.finish(state).unwrap()), values(&whole));
}

#[test]
fn signals_have_the_shapes_that_are_promised() {
    let transformer = transformer();
    let signals = |cond: &Cond| {
        let state = transformer.begin(&wide(), 500.0, cond).unwrap();
        [Signal::TimeEmbedding, Signal::TimeProjection, Signal::ModulatedInput]
            .map(|signal| transformer.signal(signal, &state).unwrap())
    };
    let cond = cond(&transformer, WIDE);
    let plain = signals(&cond);
    assert_eq!(plain.each_ref().map(|signal| signal.dims().to_vec()), [vec![1, 24], vec![6, 24], vec![3 * 2 * 4, 24]]);
    // Frames that are no noise do not change what is said of the time, only their own tokens.
    let masked = signals(&cond.with_frame_mask([true, false, true]));
    let same = |i: usize, from: usize, count: usize| {
        let part = |signals: &[Tensor; 3]| values(&signals[i].narrow(0, from, count).unwrap());
        part(&plain) == part(&masked)
    };
    assert!(same(0, 0, 1) && same(1, 0, 6) && same(2, 0, 8) && !same(2, 8, 8) && same(2, 16, 8));
}

#[test]
fn a_mask_is_thinned_with_its_frames() {
    let transformer = transformer();
    let stay = |indices: &[u32]| Tensor::new(indices, &Device::Cpu).unwrap();
    let every = [stay(&[0, 2]), stay(&[0, 1, 2, 3]), stay(&[0, 1, 2, 3, 4, 5, 6, 7])];
    let cond = cond(&transformer, WIDE);
    let thin = transformer.thinned(&cond.clone().with_frame_mask([true, false, false]), &every).unwrap();
    let latents = wide().index_select(&every[0], 2).unwrap();
    let forward = |cond: &Cond| values(&transformer.forward(&latents, 500.0, cond).unwrap());
    assert_eq!(forward(&thin), forward(&cond.clone().with_frame_mask([true, false])));
    assert_eq!(forward(&transformer.thinned(&cond, &every).unwrap()), forward(&cond));
    assert!(transformer.thinned(&thin, &every).is_err());
}

fn decoded(vae: &Vae, latents: &Tensor, frames: usize) -> Tensor {
    let mut decoding = vae.decoder(&vae.denormalize(latents).unwrap(), frames).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = decoding.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    Tensor::cat(&chunks, 0).unwrap()
}

#[test]
fn vae_decoder_in_chunks_of_time() {
    let vae = Vae::new(&config_with("vae", &[]), Weights::new(&weights("vae"), &Device::Cpu, None)).unwrap();
    let latents = tensor("vae latents", &[10, 4, 2, 3]).transpose(0, 1).unwrap().unsqueeze(0).unwrap();
    let first = |latent_frames: usize| latents.narrow(2, 0, latent_frames).unwrap();
    let whole = decoded(&vae, &latents, 34);
    is_close(&whole, "vae.frames.34");
    is_close(&decoded(&vae, &first(1), 1), "vae.frames.1");
    let of_20 = decoded(&vae, &first(6), 20);
    is_close(&of_20.narrow(0, 17, 3).unwrap(), "vae.frames.20");
    for shorter in [decoded(&vae, &first(5), 17), of_20.narrow(0, 0, 17).unwrap()] {
        assert_eq!(values(&shorter), values(&whole.narrow(0, 0, 17).unwrap()));
    }
    assert!(vae.decoder(&latents, 35).err().unwrap().to_string().contains("11 latent frames"));
}

#[test]
fn latent_frames_of_a_clip() {
    let config = VaeConfig::default();
    let known =
        [(1, 1), (4, 1), (5, 2), (16, 4), (17, 5), (18, 6), (34, 10), (51, 15), (68, 20), (102, 30), (408, 120)];
    for (frames, latent_frames) in known {
        assert_eq!(config.latent_frames(frames), latent_frames, "{frames} frames");
    }
    for latent_frames in 1..50 {
        let most = config.frames_of(latent_frames);
        assert_eq!(config.latent_frames(most), latent_frames);
        assert_eq!(config.latent_frames(most + 1), latent_frames + 1);
    }
    assert_eq!((config.time_factor(), config.space_factor(), config.micro_latent_frames()), (4, 8, 5));
}

#[test]
fn a_transformer_is_known_by_its_weights() {
    let found = TransformerConfig::from_weights(&weights("transformer")).unwrap();
    // All but what no shape says.
    let given: TransformerConfig = config_with("transformer", &[("/input_sq_size", json!(512))]);
    assert_eq!(format!("{found:?}"), format!("{given:?}"));
}

#[test]
fn other_models_are_refused() {
    TransformerConfig::default().check().unwrap();
    VaeConfig::default().check().unwrap();
    let transformers = [
        ("/model_type", json!("STDiT2")),
        ("/qk_norm", json!(false)),
        ("/depth", json!(0)),
        ("/num_heads", json!(5)),
        ("/patch_size", json!([2, 2, 2])),
        ("/mlp_ratio", json!(-1.0)),
    ];
    for (field, value) in transformers {
        let config: TransformerConfig = config_with("transformer", &[(field, value)]);
        let said = config.check().unwrap_err().to_string();
        let named = if field == "/num_heads" { "hidden_size" } else { &field[1..] };
        assert!(said.contains(named), "{field}: {said}");
    }
    let vaes = [
        ("/micro_frame_size", json!(0)),
        ("/vae_2d/type", json!("VideoAutoencoderKLTemporalDecoder")),
        ("/vae_temporal/type", json!("Other")),
        ("/vae_temporal/temporal_downsample", json!([true])),
        ("/vae_temporal/num_groups", json!(3)),
        ("/vae_temporal/num_res_blocks", json!(0)),
        ("/vae_2d_config/block_out_channels", json!([])),
        ("/vae_2d_config/latent_channels", json!(16)),
    ];
    for (field, value) in vaes {
        let config: VaeConfig = config_with("vae", &[(field, value)]);
        assert!(config.check().is_err(), "{field}");
    }
}

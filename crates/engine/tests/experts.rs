//! Wan2.2 A14B, where two transformers share the steps: against the reference (diffusers, f32, CPU) on the same random
//! weights, in every packaging, under every cache method, cut and gone on with.

mod packed;
mod tiny;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use navicache_engine::control::cache::CacheSpec;
use navicache_engine::control::cache::watch::Mode;
use navicache_engine::estimate::estimate;
use navicache_engine::inspect::inspect;
use navicache_engine::models::wan::{ImageCond, Transformer, TransformerConfig};
use navicache_engine::models::{Denoiser, Weights};
use navicache_engine::replay::player::replay;
use navicache_engine::replay::samples::SAMPLES;
use navicache_engine::replay::trace::Recorder;
use navicache_engine::weights::Tensors as Files;
use navicache_engine::{
    Checkpoint, Error, Every, LoadOptions, Pipeline, Request, Resume, Video, generate, noise, trace,
};
use packed::{Tensors, distance, is_matrix, renamed, write_gguf, write_safetensors};
use tempfile::TempDir;

const STEPS: usize = 14;
/// The first step of the second transformer in so many.
const TAKEN_OVER: usize = 5;

static T2V: LazyLock<TempDir> = LazyLock::new(|| tiny::experts("WanPipeline"));
static I2V: LazyLock<TempDir> = LazyLock::new(|| tiny::experts("WanImageToVideoPipeline"));
static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| open(T2V.path()));

fn open(folder: &Path) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn expected(name: &str) -> Tensor {
    let golden = tiny::golden().join("../experts/expected.safetensors");
    candle_core::safetensors::load(golden, &Device::Cpu).unwrap()[name].clone()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn request(cache: &str) -> Request {
    Request {
        negative_prompt: Some("a blue star spinning on a cream background".to_string()),
        size: Some((48, 32).into()),
        frames: Some(9),
        steps: Some(STEPS),
        guidance: Some(5.0),
        guidance_2: Some(3.0),
        seed: Some(7),
        max_sequence_length: Some(20),
        cache: Some(cache.parse::<CacheSpec>().unwrap_or_else(|e| panic!("{cache}: {e}"))),
        ..Request::new("a red circle bouncing on a navy background")
    }
}

fn from_picture(cache: &str) -> Request {
    Request { image: Some(tiny::golden().join("picture.png")), guidance_2: None, ..request(cache) }
}

fn make(pipeline: &Pipeline, request: &Request) -> Video {
    generate(pipeline, request, &mut |_| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{request:?}: {e}"))
}

/// The first step that the second transformer computed in the reference.
fn taken_over(name: &str, branches: usize) -> usize {
    let called: Vec<u8> = expected(&format!("{name}.called")).to_vec1().unwrap();
    called.iter().position(|&which| which == 2).unwrap() / branches
}

#[test]
fn a_transformer_with_the_channels_of_a_picture_and_no_image_encoder() {
    let hidden = Tensor::from_vec(noise::randn(1, 12 * 3 * 4 * 6), (1, 12, 3, 4, 6), &Device::Cpu).unwrap();
    let text = Tensor::from_vec(noise::randn(2, 20 * 24), (1, 20, 24), &Device::Cpu).unwrap();
    for (place, name) in [("transformer", "transformer_a14b"), ("transformer_2", "transformer_a14b_2")] {
        let folder = I2V.path().join(place);
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let config: TransformerConfig = serde_json::from_slice(&config).unwrap();
        let files = Files::open(&folder, "diffusion_pytorch_model").unwrap();
        let model = Transformer::new(&config, Weights::new(&files, &Device::Cpu, None)).unwrap();
        let picture = ImageCond { channels: Some(hidden.narrow(1, 4, 8).unwrap()), ..ImageCond::default() };
        let cond = model.cond_with_image(&text, &picture).unwrap();
        let velocity = model.forward(&hidden.narrow(1, 0, 4).unwrap(), 421.0, &cond).unwrap();
        let error = distance(&values(&velocity), &values(&expected(&format!("{name}.421"))));
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }
}

#[test]
fn whole_runs() {
    let t2v = Request { steps: Some(50), ..request("none") };
    let one_branch = Request { steps: Some(12), guidance: Some(1.0), ..request("none") };
    let i2v = Request { steps: Some(50), ..from_picture("none") };
    for (folder, name, request) in [(&T2V, "t2v", t2v), (&T2V, "one_branch", one_branch), (&I2V, "i2v", i2v)] {
        let video = make(&open(folder.path()), &request);
        let error = distance(&values(&video.latents), &values(&expected(&format!("{name}.latents"))));
        assert!(error < 1e-4, "{name}: {error:.1e}");
        if name == "one_branch" {
            assert_eq!(video.report.branches.len(), 1, "whether there are two is up to the first transformer");
            continue;
        }
        let frames: Vec<u8> = expected(&format!("{name}.frames")).flatten_all().unwrap().to_vec1().unwrap();
        let farthest = video.frames.iter().zip(&frames).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(farthest <= Some(1) && video.frames.len() == frames.len(), "{name}: {farthest:?}");
    }
}

#[test]
fn the_second_guidance_is_the_firsts_unless_said_otherwise() {
    let alike = Request { guidance_2: Some(5.0), ..request("none") };
    let left_out = Request { guidance_2: None, ..request("none") };
    let made = [&alike, &left_out, &request("none")].map(|request| values(&make(&PIPELINE, request).latents));
    assert_eq!(made[0], made[1]);
    assert_ne!(made[0], made[2]);
    // The published pair, where neither is given.
    let resolved = PIPELINE.resolve(&Request { guidance: None, ..left_out }).unwrap();
    assert_eq!((resolved.guidance, resolved.guidance_2, resolved.steps), (4.0, Some(3.0), STEPS));
    let one = open(tiny::pipeline().path()).resolve(&request("none")).unwrap_err().to_string();
    assert!(one.contains("`guidance_2` 3: this model has one transformer; take `guidance`"), "{one}");
}

#[test]
fn every_method_computes_the_step_of_the_switch_and_zero_is_the_plain_run() {
    let plain = values(&make(&PIPELINE, &request("none")).latents);
    let (mut reused, mut tried) = (0, 0);
    for sample in SAMPLES {
        for cache in sample.eager.iter().filter(|cache| !cache.ends_with(":published")) {
            let report = make(&PIPELINE, &request(&of_two_blocks(cache))).report;
            let switch = report.steps.iter().find(|step| step.index == TAKEN_OVER).unwrap();
            assert!(switch.branches.values().all(|b| b.units_reused == 0), "{cache}: {}", report.strip);
            assert_eq!(report.totals.units_computed + report.totals.units_reused, STEPS * 2 * 6, "{cache}");
            (reused, tried) = (reused + usize::from(report.totals.units_reused > 0), tried + 1);
        }
        for cache in sample.off {
            let video = make(&PIPELINE, &request(&of_two_blocks(cache)));
            assert_eq!(video.report.totals.units_reused, 0, "{cache}");
            assert_eq!(values(&video.latents), plain, "{cache}");
        }
    }
    assert!(2 * reused > tried, "{reused} of {tried} reuse");
}

/// Settings are for models of more blocks, and of tables that this one has not.
fn of_two_blocks(cache: &str) -> String {
    let more = match cache.split([',', ':']).next() {
        Some("dbcache") if !cache.contains("first_blocks") => ",first_blocks=1,last_blocks=0",
        Some("teacache") if !cache.contains("coefficients") => {
            ",coefficients=wan-t2v-1.3b,signal=time_embedding,warmup_steps=1,last_steps=1"
        }
        _ => "",
    };
    let cache = format!("{cache}{more}");
    cache.replace("granularity=block", "granularity=block,first_blocks=0.5,last_blocks=0")
}

#[test]
fn the_switch_is_where_the_reference_has_it_and_a_replay_knows() {
    let eager = "navicache,threshold=100,align_steps=1";
    for (folder, name, request) in [(&T2V, "t2v", request(eager)), (&I2V, "i2v", from_picture(eager))] {
        let request = Request { steps: Some(50), guard: Some(Mode::Off), ..request };
        let pipeline = open(folder.path());
        let strip = make(&pipeline, &request).report.strip;
        let ran: Vec<&str> = strip.split_terminator('|').collect();
        let switch = taken_over(name, 2);
        assert_eq!(ran[switch - 3..=switch], ["..", "..", "..", "SS"], "{name}: {strip}");
        let recorded = trace::record(&pipeline, &request, &Recorder::default(), &mut |_| ControlFlow::Continue(()));
        let recorded = recorded.unwrap();
        assert_eq!(recorded.header.segments, [switch]);
        let config = request.cache.unwrap().resolve("wan").unwrap();
        assert_eq!(replay(&recorded, config.method()).unwrap().played.strip().to_string(), strip, "{name}");
    }
}

#[test]
fn a_run_goes_on_across_the_switch_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for cache in ["none", "stride,threshold=0.5", "navicache,threshold=0.5,align_steps=2,reuse=linear", "pab"] {
        let whole = make(&PIPELINE, &request(cache));
        for cut in [1, TAKEN_OVER - 1, TAKEN_OVER, TAKEN_OVER + 1, STEPS - 1] {
            let path = folder.path().join(format!("{cache} {cut}.ckpt"));
            let stop_after = NonZeroUsize::new(cut);
            let checkpoint = Some(Checkpoint { path: path.clone(), every: Every::Auto, stop_after, keep: false });
            let stopped =
                generate(&PIPELINE, &Request { checkpoint, ..request(cache) }, &mut |_| ControlFlow::Continue(()));
            assert!(matches!(stopped, Err(Error::Stopped { step, .. }) if step == cut), "{cache}, {cut}");
            let resume = |guidance_2| Request {
                guidance_2,
                resume: Some(Resume { path: path.clone(), allow_other_build: false }),
                ..Request::default()
            };
            let rest = make(&PIPELINE, &resume(None));
            assert_eq!(rest.report.strip, whole.report.strip, "{cache}, {cut}");
            assert_eq!(values(&rest.latents), values(&whole.latents), "{cache}, {cut}");
            let other = generate(&PIPELINE, &resume(Some(2.0)), &mut |_| ControlFlow::Continue(()));
            let message = other.map(|_| ()).unwrap_err().to_string();
            assert!(message.contains("was made for guidance 2 3.0, this is 2.0"), "{message}");
        }
    }
}

#[test]
fn memory_is_that_of_one_at_a_time() {
    let estimated = estimate(&PIPELINE, &request("none")).unwrap();
    let stages: Vec<&str> = estimated.memory.iter().map(|stage| stage.stage).collect();
    assert_eq!(stages, ["text", "denoise", "denoise", "decode"]);
    let most = estimated.memory.iter().map(|stage| stage.bytes()).max();
    assert_eq!(Some(estimated.peak_bytes), most);
}

/// The pair of the layouts' shape: the transformer without what CLIP's picture needs, and another.
fn pair(naming: &str) -> [Tensors; 2] {
    let of_picture = ["image_embedder", "add_k_proj", "add_v_proj", "norm_added_k", "img_emb", "k_img", "v_img"];
    let mut first =
        if naming == "diffusers" { packed::component("transformer") } else { renamed("transformer", naming) };
    first.retain(|name, _| !of_picture.iter().any(|part| name.contains(part)));
    let second = first.iter().map(|(name, tensor)| (name.clone(), (tensor * 0.9).unwrap())).collect();
    [first, second]
}

fn save(path: PathBuf, tensors: &Tensors) {
    write_safetensors(&path, tensors.clone(), None);
}

/// The Diffusers folder of the pair, and what it makes.
static PACKED: LazyLock<(TempDir, Vec<f32>)> = LazyLock::new(|| {
    let folder = packed::copy();
    let config = std::fs::read_to_string(folder.path().join("transformer/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    (config["image_dim"], config["added_kv_proj_dim"]) = (serde_json::Value::Null, serde_json::Value::Null);
    for (place, tensors) in ["transformer", "transformer_2"].into_iter().zip(pair("diffusers")) {
        save(folder.path().join(place).join("diffusion_pytorch_model.safetensors"), &tensors);
        std::fs::write(folder.path().join(place).join("config.json"), config.to_string()).unwrap();
    }
    std::fs::remove_dir_all(folder.path().join("image_encoder")).unwrap();
    let index = r#"{"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9,
        "transformer_2": ["diffusers", "WanTransformer3DModel"], "image_encoder": [null, null]}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let made = latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap();
    (folder, made)
});

fn latents(model: &str, options: LoadOptions) -> Result<Vec<f32>, Error> {
    let pipeline = Pipeline::open(model, &options)?;
    let request = Request { shift: Some(5.0), steps: Some(6), ..packed::request() };
    Ok(values(&generate(&pipeline, &request, &mut |_| ControlFlow::Continue(()))?.latents))
}

/// What every packaging has beside the transformers.
fn beside(folder: &Path) {
    save(folder.join("Wan2.1_VAE.safetensors"), &renamed("vae", "authors"));
    save(folder.join("models_t5_umt5-xxl-enc-bf16.safetensors"), &renamed("text_encoder", "authors"));
    std::fs::create_dir_all(folder.join("google/umt5-xxl")).unwrap();
    std::fs::copy(packed::golden().join("tokenizer/spiece.model"), folder.join("google/umt5-xxl/spiece.model"))
        .unwrap();
}

fn made_by(folder: &Path) -> Vec<f32> {
    latents(folder.to_str().unwrap(), LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_packaging_makes_the_same_video() {
    let of_shape = format!("{{{}}}", r#""_class_name": "WanModel", "model_type": "i2v", "dim": 256, "num_heads": 2"#);
    let names = [
        ("high_noise_model/diffusion_pytorch_model", "low_noise_model/diffusion_pytorch_model"),
        ("diffusion_models/wan2.2_i2v_high_noise_14B", "diffusion_models/wan2.2_i2v_low_noise_14B"),
        ("Wan2_2-I2V-A14B-HIGH_bf16", "Wan2_2-I2V-A14B-LOW_bf16"),
    ];
    for (high, low) in names {
        let folder = tempfile::tempdir().unwrap();
        beside(folder.path());
        for (name, tensors) in [high, low].into_iter().zip(pair("authors")) {
            let path = folder.path().join(format!("{name}.safetensors"));
            save(path.clone(), &tensors);
            if name.ends_with("diffusion_pytorch_model") {
                std::fs::write(path.with_file_name("config.json"), &of_shape).unwrap();
            }
        }
        assert_eq!(made_by(folder.path()), PACKED.1, "{high}");
        let inspected = inspect(folder.path().to_str().unwrap()).unwrap();
        assert!(inspected.missing.is_empty() && inspected.problem.is_none(), "{inspected:?}");
    }
    // Streamed, as by a machine whose memory one of them does not fit into.
    let streamed = LoadOptions { memory: Some(1_500_000), ..LoadOptions::default() };
    assert_eq!(latents(PACKED.0.path().to_str().unwrap(), streamed).unwrap(), PACKED.1);
}

#[test]
fn narrower_packagings_stay_within_their_bounds() {
    let fp8 = |tensors: &Tensors| -> Tensors {
        let narrow = |(name, tensor): (&String, &Tensor)| {
            let dtype = if is_matrix(name, tensor) { DType::F8E4M3 } else { DType::F32 };
            (format!("model.diffusion_model.{name}"), tensor.to_dtype(dtype).unwrap())
        };
        tensors.iter().map(narrow).collect()
    };
    let folder = tempfile::tempdir().unwrap();
    beside(folder.path());
    for (expert, tensors) in ["high", "low"].into_iter().zip(pair("authors")) {
        save(folder.path().join(format!("wan2.2_i2v_{expert}_noise_14B_fp8.safetensors")), &fp8(&tensors));
    }
    let found = distance(&made_by(folder.path()), &PACKED.1);
    assert!(found > 0.0 && found < 6e-2, "{found:.1e}");
    for (dtype, bound) in [(GgmlDType::Q8_0, 2e-2), (GgmlDType::Q4K, 2e-1)] {
        let folder = tempfile::tempdir().unwrap();
        beside(folder.path());
        for (expert, tensors) in ["High", "Low"].into_iter().zip(pair("authors")) {
            let place = folder.path().join(format!("{expert}Noise"));
            std::fs::create_dir(&place).unwrap();
            write_gguf(&place.join(format!("Wan2.2-I2V-A14B-{expert}Noise-Q.gguf")), &tensors, dtype, &[]);
        }
        let found = distance(&made_by(folder.path()), &PACKED.1);
        assert!(found > 0.0 && found < bound, "{dtype:?}: {found:.1e}");
    }
}

#[test]
fn a_half_that_is_missing_swapped_or_of_another_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [high, low] = pair("authors");
    let at = |name: &str, tensors: &Tensors| {
        let path = folder.path().join(name);
        save(path.clone(), tensors);
        Some(path)
    };
    let mut of_text = low.clone();
    let patch = of_text["patch_embedding.weight"].narrow(1, 0, 16).unwrap().contiguous().unwrap();
    of_text.insert("patch_embedding.weight".to_string(), patch);
    let (high, low) = (at("wan2.2_high_noise.safetensors", &high), at("wan2.2_low_noise.safetensors", &low));
    let (text_high, plain) = (at("t2v_high_noise.safetensors", &of_text), at("plain.safetensors", &of_text));
    let base = PACKED.0.path().to_str().unwrap();
    let refused = |model: &str, transformer: &Option<PathBuf>, transformer_2: &Option<PathBuf>, part: &str| {
        let files = navicache_engine::Files {
            transformer: transformer.clone(),
            transformer_2: transformer_2.clone(),
            ..Default::default()
        };
        let made = latents(model, LoadOptions { files, ..LoadOptions::default() });
        let message = made.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    let lacks = |which: &str| format!("the transformer for {which} noise of Wan2.2 A14B, which has two");
    refused("", &high, &None, &(lacks("low") + " (`transformer_2` FILE)"));
    refused("", &None, &low, &(lacks("high") + " (`transformer` FILE)"));
    refused("", &text_high, &None, &lacks("low"));
    let alone = tempfile::tempdir().unwrap();
    beside(alone.path());
    save(alone.path().join("of_a_picture.safetensors"), &pair("authors")[0]);
    refused(alone.path().to_str().unwrap(), &None, &None, &lacks("low"));
    refused(base, &low, &high, "expected a Wan transformer, found a Wan transformer for low noise");
    refused(
        base,
        &high,
        &plain,
        "in_channels of the transformer for high noise is 36, that of the one for low noise 16",
    );

    let copy = tempfile::tempdir().unwrap();
    tiny::copy(PACKED.0.path(), copy.path());
    for (index, part) in [
        (r#"{"_class_name": "WanPipeline", "transformer_2": ["diffusers", "X"]}"#, "found null and transformer_2"),
        (r#"{"_class_name": "WanPipeline", "boundary_ratio": 0.9}"#, "found 0.9 and transformer_2 null"),
        (r#"{"_class_name": "WanPipeline", "boundary_ratio": 9, "transformer_2": ["a", "b"]}"#, "a number from 0 to 1"),
    ] {
        std::fs::write(copy.path().join("model_index.json"), index).unwrap();
        refused(copy.path().to_str().unwrap(), &None, &None, part);
    }
}

#[test]
fn a_lora_goes_to_the_transformer_that_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let base = PACKED.0.path().to_str().unwrap();
    let randn = |seed, shape: &[usize]| {
        Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let module = "blocks.0.attn1.to_q";
    let (down, up) = (randn(1, &[4, 256]), randn(2, &[256, 4]));
    let lora = |name: &str| {
        let path = folder.path().join(name);
        let tensors =
            [(format!("{module}.lora_A.weight"), down.clone()), (format!("{module}.lora_B.weight"), up.clone())];
        write_safetensors(&path, tensors, None);
        path.display().to_string()
    };
    // The same by hand.
    let merged = |which: [bool; 2]| {
        let copy = tempfile::tempdir().unwrap();
        tiny::copy(PACKED.0.path(), copy.path());
        for ((place, mut tensors), is_merged) in
            ["transformer", "transformer_2"].into_iter().zip(pair("diffusers")).zip(which)
        {
            if is_merged {
                let weight = tensors.get_mut(&format!("{module}.weight")).unwrap();
                *weight = (&*weight + (up.matmul(&down).unwrap() * 0.5).unwrap()).unwrap();
            }
            save(copy.path().join(place).join("diffusion_pytorch_model.safetensors"), &tensors);
        }
        made_by(copy.path())
    };
    let (named, plain) = (lora("style_wan2.2_low_noise.safetensors"), lora("style.safetensors"));
    for (given, which) in [
        (format!("{named}:0.5"), [false, true]),
        (format!("{named}:0.5:high"), [true, false]),
        (format!("{plain}:0.5:low"), [false, true]),
        (format!("{plain}:0.5"), [true, true]),
    ] {
        let options = LoadOptions { loras: vec![given.parse().unwrap()], ..LoadOptions::default() };
        let found = latents(base, options).unwrap();
        assert!(distance(&found, &merged(which)) < 1e-5, "{given}");
        assert!(distance(&found, &PACKED.1) > 1e-4, "{given} changes something");
    }
    let one = LoadOptions { loras: vec![format!("{plain}:low").parse().unwrap()], ..LoadOptions::default() };
    let message = packed::latents(packed::REFERENCE.0.path().to_str().unwrap(), one).unwrap_err().to_string();
    assert!(
        message.contains("it is for the transformer of low noise, and this model has one transformer"),
        "{message}"
    );
}

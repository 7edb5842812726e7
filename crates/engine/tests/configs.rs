//! Configurations that cannot be, and files that are none: a message before anything is computed.

mod packed;
mod tiny;

use std::ops::ControlFlow;
use std::path::Path;

use navicache_engine::inspect::inspect;
use navicache_engine::{Files, LoadOptions, Pipeline, Request, generate};
use serde_json::{Value, json};

const PREPROCESSOR: &str = "image_processor/preprocessor_config.json";

/// A copy of the pipeline with one value of a JSON file changed.
fn changed(file: &str, key: &str, value: Value) -> (tempfile::TempDir, String) {
    let folder = packed::copy();
    let path = folder.path().join(file);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    let message = refused(folder.path(), Files::default());
    (folder, message)
}

fn refused(folder: &Path, files: Files) -> String {
    let options = LoadOptions { files, ..LoadOptions::default() };
    Pipeline::open(folder.to_str().unwrap(), &options).err().expect("a message").to_string()
}

#[test]
fn configurations_that_cannot_be_are_refused_at_once() {
    for (file, key, value, part) in [
        ("transformer/config.json", "rope_max_seq_len", json!(1_000_000_000), "rope_max_seq_len is 1000000000"),
        (
            "transformer/config.json",
            "rope_max_seq_len",
            json!(10u64.pow(18)),
            "rope_max_seq_len is 1000000000000000000",
        ),
        ("transformer/config.json", "rope_max_seq_len", json!(0), "rope_max_seq_len is 0"),
        ("transformer/config.json", "image_dim", json!(null), "added_kv_proj_dim"),
        ("transformer/config.json", "cross_attn_norm", json!(false), "cross_attn_norm is false, expected true, as in"),
        ("vae/config.json", "patch_size", json!(0), "patch_size is 0, expected null, or 1 to 8"),
        ("vae/config.json", "num_res_blocks", json!(0), "num_res_blocks is 0, expected 1, as in the weights"),
        ("text_encoder/config.json", "num_layers", json!(1), "num_layers is 1, expected 2, as in the weights"),
        ("image_encoder/config.json", "num_hidden_layers", json!(1), "num_hidden_layers is 1, expected 2, as in"),
        (PREPROCESSOR, "do_center_crop", json!(false), "do_center_crop: expected true, found false"),
        (PREPROCESSOR, "resample", json!(2), "resample: expected 3 (bicubic), found 2"),
        (PREPROCESSOR, "rescale_factor", json!(0.5), "rescale_factor: expected 1/255, found 0.5"),
        (PREPROCESSOR, "size", json!({"shortest_edge": 30}), "size: expected 28, the image encoder's"),
        (PREPROCESSOR, "crop_size", json!(14), "crop_size: expected 28, the image encoder's, found 14"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(0), "num_train_timesteps: expected 1 to"),
        ("scheduler/scheduler_config.json", "flow_shift", json!(-1.0), "shift: expected a number above 0, found -1"),
    ] {
        let (folder, message) = changed(file, key, value);
        assert!(message.contains(part), "{file} {key}: {message}");
        let inspected = inspect(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(inspected.problem.as_deref(), Some(message.as_str()), "{file} {key}");
    }
}

#[cfg(unix)]
#[test]
fn what_never_ends_is_not_waited_for() {
    let folder = packed::copy();
    let pipe = |path: &Path| {
        let _ = std::fs::remove_file(path);
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for file in ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json", "tokenizer/tokenizer.json"] {
        let path = folder.path().join(file);
        let kept = std::fs::read(&path).unwrap();
        pipe(&path);
        let message = refused(folder.path(), Files::default());
        assert!(message.contains("expected a regular file, found a pipe or a device"), "{file}: {message}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, kept).unwrap();
    }
    let zero = folder.path().join("zero.safetensors");
    std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
    for files in [
        Files { transformer: Some(zero.clone()), ..Files::default() },
        Files { tokenizer: Some(zero.clone()), ..Files::default() },
    ] {
        let message = refused(folder.path(), files);
        assert!(message.contains("zero.safetensors: expected a regular file"), "{message}");
    }
}

/// A folder with the transformer alone, and a `config.json` beside it: what the report of a video says of that, or why
/// it is refused.
fn beside(config: &[u8]) -> Result<Vec<String>, String> {
    let (base, apart) = (packed::copy(), tempfile::tempdir().unwrap());
    let file = apart.path().join("model.safetensors");
    std::fs::copy(base.path().join("transformer/diffusion_pytorch_model.safetensors"), &file).unwrap();
    std::fs::write(apart.path().join("config.json"), config).unwrap();
    let files = Files { transformer: Some(file), ..Files::default() };
    let options = LoadOptions { files, ..LoadOptions::default() };
    let pipeline = Pipeline::open(base.path().to_str().unwrap(), &options).map_err(|e| e.to_string())?;
    let request = Request { steps: Some(1), ..packed::request() };
    let video = generate(&pipeline, &request, &mut |_| ControlFlow::Continue(())).map_err(|e| e.to_string())?;
    Ok(video.report.warnings)
}

#[test]
fn a_configuration_beside_a_file_is_used_or_named() {
    let of_it = std::fs::read(packed::golden().join("transformer/config.json")).unwrap();
    let changed = |key: &str, value: Value| {
        let mut config: Value = serde_json::from_slice(&of_it).unwrap();
        config[key] = value;
        config.to_string()
    };
    let warned = |config: &str| beside(config.as_bytes()).unwrap_or_else(|e| panic!("{config}: {e}"));
    let about_it = |config: &str| {
        let warnings = warned(config).into_iter().filter(|warning| warning.contains("config.json"));
        warnings.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(about_it(&changed("eps", json!(1e-6))), "");
    assert_eq!(about_it("{}"), "", "who counts downloads by it says nothing in it");
    for (config, part) in [
        (changed("_class_name", json!("HunyuanVideoTransformer3DModel")), "for it describes HunyuanVideoTransformer3D"),
        (
            changed("_class_name", json!("AutoencoderKLWan")),
            "for it describes AutoencoderKLWan, and beside it is a Wan",
        ),
        (json!({"model_type": "llama"}).to_string(), "for it describes llama"),
        (json!({"anything": 1}).to_string(), "for it describes something that it does not name"),
        (changed("num_attention_heads", json!(7)), "for it is of another size than"),
        (changed("use_extra_norm", json!(true)), "not known here, and not used: use_extra_norm"),
    ] {
        let warnings = about_it(&config);
        assert!(warnings.contains(part), "{config}: {warnings}");
    }
    for (config, part) in [
        ("{\"_class_name\": ".to_string(), "config.json: EOF while parsing"),
        (changed("num_layers", json!(1)), "num_layers is 1, expected 2, as in the weights"),
        (changed("qk_norm", json!("layer_norm")), "qk_norm is"),
        (
            json!({"_class_name": "WanModel", "model_type": "s2v", "dim": 256, "num_heads": 2, "num_layers": 2,
                "in_dim": 36, "out_dim": 16, "ffn_dim": 512, "freq_dim": 256})
            .to_string(),
            "model_type is s2v, expected t2v, i2v or ti2v",
        ),
    ] {
        let error = beside(config.as_bytes()).expect_err(&config);
        assert!(error.contains(part), "{config}: {error}");
    }
}

#[test]
fn what_a_family_has_no_place_for_is_refused() {
    let folder = packed::copy();
    let tokenizer = Some(folder.path().join("tokenizer/tokenizer.json"));
    let message = refused(folder.path(), Files { tokenizer_2: tokenizer, ..Files::default() });
    assert!(message.contains("tokenizer_2") && message.contains("Wan has one text encoder"), "{message}");
    let hunyuan = tiny::pipeline_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hunyuan"));
    let second = Some(hunyuan.path().join("transformer"));
    let message = refused(hunyuan.path(), Files { transformer_2: second, ..Files::default() });
    assert!(message.ends_with("`transformer_2`: HunyuanVideo has no such part"), "{message}");
}

#[test]
fn keys_that_nobody_knows_are_warned_of() {
    let folder = packed::copy();
    for part in ["transformer", "vae", "text_encoder", "image_encoder"] {
        let path = folder.path().join(part).join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["twist"] = json!(0.5);
        std::fs::write(&path, config.to_string()).unwrap();
    }
    let warnings = inspect(folder.path().to_str().unwrap()).unwrap().warnings;
    for part in ["transformer", "vae", "text_encoder", "image_encoder"] {
        let expected = format!("{part}/config.json: not known here, and not used: twist");
        assert!(warnings.iter().any(|warning| warning.ends_with(&expected)), "{part}: {warnings:?}");
    }
}

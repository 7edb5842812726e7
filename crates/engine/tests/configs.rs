//! Configurations that cannot be, and files that are none: a message before anything is computed.

mod packed;
mod tiny;

use std::path::Path;

use navicache_engine::inspect::inspect;
use navicache_engine::{Files, LoadOptions, Pipeline};
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

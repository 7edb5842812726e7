//! `convert`: any packaging, written anew, makes the same video; bit for bit where no number was rounded.

mod packed;
mod tiny;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use navicache_engine::convert::{Conversion, Converted, convert};
use navicache_engine::{Error, Files, LoadOptions, noise};
use packed::{REFERENCE, component, distance, file_of, latents, renamed, write_safetensors, write_torch};

fn conversion(from: &Path, to: &Path, numbers: Option<&str>) -> Conversion {
    let numbers = numbers.map(|name| name.parse().unwrap());
    Conversion { from: from.display().to_string(), to: to.to_path_buf(), numbers, loras: Vec::new() }
}

fn made(conversion: &Conversion) -> Vec<Converted> {
    convert(conversion, &mut |_| ()).unwrap_or_else(|e| panic!("{conversion:?}: {e}"))
}

fn with_transformer(path: &Path) -> Vec<f32> {
    let files = Files { transformer: Some(path.to_path_buf()), ..Files::default() };
    latents(REFERENCE.0.path().to_str().unwrap(), LoadOptions { files, ..LoadOptions::default() }).unwrap()
}

fn of_folder(folder: &Path) -> Vec<f32> {
    latents(folder.to_str().unwrap(), LoadOptions::default()).unwrap()
}

#[test]
fn there_and_back_is_the_same_video_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let written = made(&conversion(&file_of("transformer"), &at("wan.gguf"), None));
    assert_eq!((written.len(), written[0].what.as_str(), written[0].error), (1, "a Wan transformer", 0.0));
    assert_eq!(with_transformer(&at("wan.gguf")), REFERENCE.1);
    made(&conversion(&at("wan.gguf"), &at("back.safetensors"), None));
    assert_eq!(with_transformer(&at("back.safetensors")), REFERENCE.1);
    let tensors = |path: &Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let (before, after) = (tensors(&file_of("transformer")), tensors(&at("back.safetensors")));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in before {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&tensor), values(&after[&name]), "{name}");
    }
    // A GGUF file has the names that other programs look for.
    let listed = navicache_engine::weights::list_file(&at("wan.gguf")).unwrap().1;
    assert!(listed.tensors.contains_key("blocks.0.self_attn.q.weight"), "{:?}", listed.tensors.keys());
}

#[test]
fn a_whole_model_of_another_packaging_becomes_diffusers() {
    let authors = tempfile::tempdir().unwrap();
    let at = |name: &str| authors.path().join(name);
    let config = r#"{"_class_name": "WanModel", "model_type": "i2v", "dim": 256, "num_heads": 2, "eps": 1e-06}"#;
    std::fs::write(at("config.json"), config).unwrap();
    write_safetensors(&at("diffusion_pytorch_model.safetensors"), renamed("transformer", "authors"), None);
    write_torch(&at("Wan2.1_VAE.pth"), &[("", &renamed("vae", "authors"))]);
    write_torch(&at("models_t5_umt5-xxl-enc-bf16.pth"), &[("", &renamed("text_encoder", "authors"))]);
    write_torch(&at("models_clip_open-clip.pth"), &[("", &renamed("image_encoder", "authors"))]);
    std::fs::create_dir_all(at("google/umt5-xxl")).unwrap();
    let spiece = packed::golden().join("tokenizer/spiece.model");
    std::fs::copy(&spiece, at("google/umt5-xxl/spiece.model")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted");
    let mut shown = std::collections::BTreeSet::new();
    let written = convert(&conversion(authors.path(), &to, None), &mut |progress| {
        shown.insert(progress.path.to_path_buf());
    });
    let written = written.unwrap();
    assert_eq!(written.len(), 4);
    assert_eq!(shown, written.iter().map(|file| file.path.clone()).collect());
    assert!(written.iter().all(|file| file.path.exists() && file.error == 0.0), "{written:?}");
    assert!(to.join("config.json").exists() && to.join("google/umt5-xxl/spiece.model").exists());
    assert_eq!(of_folder(&to), REFERENCE.1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

    // A Diffusers folder stays one; only the transformer is quantised.
    let quantised = folder.path().join("quantised");
    made(&conversion(REFERENCE.0.path(), &quantised, Some("q8_0")));
    assert!(quantised.join("transformer/diffusion_pytorch_model.gguf").exists());
    assert!(quantised.join("vae/diffusion_pytorch_model.safetensors").exists());
    let found = distance(&of_folder(&quantised), &REFERENCE.1);
    assert!(found > 0.0 && found < 2e-2, "{found:.1e}");
}

#[cfg(unix)]
#[test]
fn what_is_made_of_a_read_only_model_can_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    made(&conversion(REFERENCE.0.path(), &from, None));
    let all = |folder: &Path| -> Vec<PathBuf> {
        let mut found = vec![folder.to_path_buf()];
        for next in 0.. {
            let Some(path) = found.get(next).cloned() else { break };
            let inside = std::fs::read_dir(path).into_iter().flatten();
            found.extend(inside.map(|entry| entry.unwrap().path()));
        }
        found
    };
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    all(&from).iter().rev().for_each(|path| set(path, if path.is_dir() { 0o555 } else { 0o444 }));
    made(&conversion(&from, &to, None));
    all(&from).iter().for_each(|path| set(path, if path.is_dir() { 0o755 } else { 0o644 })); // to be removed
    let [new_folder, new_file] = ["folder", "file"].map(|name| folder.path().join(name));
    std::fs::create_dir(&new_folder).unwrap();
    std::fs::write(&new_file, "").unwrap();
    assert!(all(&to).len() > 10, "{:?}", all(&to));
    for path in all(&to) {
        let usual = if path.is_dir() { &new_folder } else { &new_file };
        assert_eq!(mode(&path), mode(usual), "{}", path.display());
    }
}

#[test]
fn narrower_numbers_stay_within_their_bounds() {
    let folder = tempfile::tempdir().unwrap();
    // Of the video, as of quantised files that others made; of the matrices, what the formats can do.
    for (numbers, ending, of_video, of_numbers) in [
        ("bf16", "safetensors", 8e-3, 3e-3),
        ("f16", "gguf", 7e-4, 4e-4),
        ("q8_0", "gguf", 2e-2, 1e-2),
        ("q6_k", "gguf", 5e-2, 3e-2),
        ("q5_k", "gguf", 1e-1, 5e-2),
        ("q4_k", "gguf", 2e-1, 1e-1),
    ] {
        let to = folder.path().join(format!("{numbers}.{ending}"));
        let written = made(&conversion(&file_of("transformer"), &to, Some(numbers)));
        assert!(written[0].error > 0.0 && written[0].error < of_numbers, "{numbers}: {:.1e}", written[0].error);
        let found = distance(&with_transformer(&to), &REFERENCE.1);
        assert!(found > 0.0 && found < of_video, "{numbers}: {found:.1e}");
        let before = std::fs::metadata(file_of("transformer")).unwrap().len();
        assert!(std::fs::metadata(&to).unwrap().len() < before, "{numbers}");
    }
    // What is quantised already is copied as it is.
    let again = folder.path().join("again.gguf");
    made(&conversion(&folder.path().join("q4_k.gguf"), &again, None));
    assert_eq!(with_transformer(&again), with_transformer(&folder.path().join("q4_k.gguf")));
}

fn lora(folder: &Path) -> PathBuf {
    let path = folder.join("style.safetensors");
    let randn = |seed, shape: &[usize]| {
        Tensor::from_vec(noise::randn(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let module = "diffusion_model.blocks.0.self_attn.q";
    let tensors = [
        (format!("{module}.lora_down.weight"), randn(1, &[4, 256])),
        (format!("{module}.lora_up.weight"), randn(2, &[256, 4])),
    ];
    write_safetensors(&path, tensors, None);
    path
}

#[test]
fn a_lora_is_merged() {
    let folder = tempfile::tempdir().unwrap();
    let loras = vec![format!("{}:0.5", lora(folder.path()).display()).parse().unwrap()];
    let merged = folder.path().join("merged.safetensors");
    made(&Conversion { loras: loras.clone(), ..conversion(&file_of("transformer"), &merged, None) });
    let added = LoadOptions { loras, ..LoadOptions::default() };
    let added = latents(REFERENCE.0.path().to_str().unwrap(), added).unwrap();
    assert_eq!(with_transformer(&merged), added, "the same as when it is added, bit for bit");
    assert_ne!(added, REFERENCE.1);
}

#[test]
fn a_lora_goes_into_a_whole_model_as_it_does_into_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Of one transformer, a name that speaks of low noise says nothing.
    let named = at("style_low_noise.safetensors");
    std::fs::rename(lora(folder.path()), &named).unwrap();
    let loras = vec![named.display().to_string().parse().unwrap()];
    made(&Conversion { loras: loras.clone(), ..conversion(REFERENCE.0.path(), &at("whole"), None) });
    let added = latents(REFERENCE.0.path().to_str().unwrap(), LoadOptions { loras, ..LoadOptions::default() }).unwrap();
    assert_eq!(latents(at("whole").to_str().unwrap(), LoadOptions::default()).unwrap(), added);
    assert_ne!(added, REFERENCE.1);

    let loras = vec![format!("{}:1:low", named.display()).parse().unwrap()];
    let refused = convert(&Conversion { loras, ..conversion(REFERENCE.0.path(), &at("other"), None) }, &mut |_| ());
    let message = refused.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("this model has one transformer"), "{message}");
    assert!(!at("other").exists());
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refused = |conversion: Conversion, part: &str| {
        let error: Error = convert(&conversion, &mut |_| ()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    let transformer = file_of("transformer");
    std::fs::write(at("there.gguf"), b"mine").unwrap();
    refused(conversion(&transformer, &at("there.gguf"), None), "it is there already");
    assert_eq!(std::fs::read(at("there.gguf")).unwrap(), b"mine");
    refused(conversion(&at("nothing"), &at("x.gguf"), None), "there is no such file or folder");
    refused(
        conversion(&file_of("vae"), &at("x.gguf"), None),
        "only transformers are written as GGUF, this is a Wan VAE",
    );
    refused(conversion(&file_of("vae"), &at("x.safetensors"), Some("bf16")), "expected a transformer, found a Wan VAE");
    refused(conversion(&transformer, &at("x.safetensors"), Some("q4_k")), "quantised numbers are written as GGUF");
    refused(conversion(&transformer, &at("x.pth"), None), "expected the name of a .safetensors or .gguf file");
    refused(conversion(REFERENCE.0.path(), &at("x.safetensors"), None), "give a folder to write");
    let with_lora = |from: &Path| Conversion {
        loras: vec![lora(folder.path()).display().to_string().parse().unwrap()],
        ..conversion(from, &at("x.safetensors"), None)
    };
    refused(with_lora(&file_of("vae")), "expected a transformer to merge it into, found a Wan VAE");
    let mut infinite = component("transformer");
    let weight = &infinite["blocks.0.attn1.to_q.weight"] * f64::INFINITY;
    infinite.insert("blocks.0.attn1.to_q.weight".to_string(), weight.unwrap());
    write_safetensors(&at("infinite.safetensors"), infinite, None);
    refused(conversion(&at("infinite.safetensors"), &at("x.gguf"), Some("q8_0")), "not finite");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

//! Weights are never ignored silently: what a file really is, factors of 8-bit weights, what training code puts around
//! weights, and names of files.

mod packed;
mod tiny;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use navicache_engine::inspect::inspect;
use navicache_engine::{Files, LoadOptions, Pipeline};
use packed::{
    REFERENCE, Raw, Tensors, bytes_of, component, file_of, is_matrix, latents, raw, renamed, write_raw,
    write_safetensors, write_torch,
};
use safetensors::Dtype;
use tempfile::TempDir;

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

fn diffusers() -> &'static str {
    REFERENCE.0.path().to_str().unwrap()
}

fn with_transformer(path: &Path) -> LoadOptions {
    LoadOptions { files: Files { transformer: Some(path.to_path_buf()), ..Files::default() }, ..LoadOptions::default() }
}

/// What a pipeline with this transformer makes.
fn made_with(path: &Path) -> Vec<f32> {
    latents(diffusers(), with_transformer(path)).unwrap()
}

/// Why it is refused before anything is computed; `inspect` gives the same reason.
fn refused(path: &Path) -> String {
    let message = Pipeline::open(diffusers(), &with_transformer(path)).err().unwrap().to_string();
    let inspected = inspect(path.to_str().unwrap()).unwrap();
    assert_eq!(inspected.weights[0].what, message);
    assert!(inspected.missing.is_empty() && inspected.problem.as_deref() == Some(&message), "{inspected:?}");
    message
}

#[test]
fn a_tensor_that_the_model_does_not_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    for (naming, extra, what) in [
        ("authors", "audio_injector.injector.0.q.weight", "Wan2.2 S2V"),
        ("authors", "trainable_cond_mask.weight", "Wan2.2 S2V"),
        ("diffusers", "vace_blocks.0.proj_in.weight", "Wan VACE"),
        ("diffusers", "vace_patch_embedding.weight", "Wan VACE"),
        ("authors", "face_adapter.fuser_blocks.0.k_norm.weight", "Wan2.2 Animate"),
        ("authors", "control_adapter.conv.weight", "Fun-Camera"),
        ("authors", "fps_embedding.weight", "SkyReels-V2"),
        ("authors", "blocks.0.audio_cross_attn.q_linear.weight", "with audio"),
        (
            "authors",
            "blocks.1.unheard_of.weight",
            "1 of its tensors are not read by that model, as blocks.1.unheard_of",
        ),
        ("diffusers", "blocks.0.attn1.norm_q.bias", "1 of its tensors are not read by that model, as blocks.0.attn1"),
    ] {
        let mut tensors = if naming == "authors" { renamed("transformer", naming) } else { component("transformer") };
        assert!(tensors.insert(extra.to_string(), ones(&[4, 4])).is_none());
        write_safetensors(&path, tensors, None);
        let message = refused(&path);
        assert!(message.contains(what) && message.contains("other.safetensors"), "{extra}: {message}");
    }
    let mut marked = component("transformer");
    marked.insert("model_type.Wan2_1-I2V-14B-480P".to_string(), ones(&[1]));
    write_safetensors(&path, marked, None);
    assert_eq!(made_with(&path), REFERENCE.1, "a mark makes no difference");
}

#[test]
fn channels_say_which_model_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let with_channels = |channels: usize, sees: bool| {
        let mut tensors = renamed("transformer", "authors");
        tensors.insert("patch_embedding.weight".to_string(), ones(&[256, channels, 1, 2, 2]));
        let of_picture = |name: &str| name.starts_with("img_emb") || name.contains("k_img") || name.contains("v_img");
        tensors.retain(|name, _| sees || !of_picture(name));
        write_safetensors(&path, tensors, None);
        refused(&path)
    };
    for (channels, sees, what) in [
        (52, false, "one of the two transformers of Wan2.2 Fun-Control A14B: it takes 52 channels and makes 16"),
        (48, true, "a Wan2.1 Fun-Control transformer: it takes 48 channels and makes 16"),
        (17, false, "it takes 17 channels and makes 16"),
    ] {
        let message = with_channels(channels, sees);
        assert!(message.contains(what), "{message}");
    }
    let mut tensors = renamed("transformer", "authors");
    tensors.insert("img_emb.emb_pos".to_string(), ones(&[1, 8, 32]));
    write_safetensors(&path, tensors, None);
    let message = refused(&path);
    assert!(message.contains("first-last-frame"), "{message}");
}

#[test]
fn blocks_that_would_not_run_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let moved = component("transformer").into_iter();
    write_safetensors(&path, moved.map(|(name, tensor)| (name.replace("blocks.1.", "blocks.2."), tensor)), None);
    let message = refused(&path);
    assert!(message.contains("not all of it: blocks.1 is missing"), "{message}");

    let copy = packed::copy();
    let place = copy.path().join("transformer/config.json");
    let config = std::fs::read_to_string(&place).unwrap();
    std::fs::write(&place, config.replace("\"num_layers\": 2", "\"num_layers\": 1")).unwrap();
    let message = Pipeline::open(copy.path().to_str().unwrap(), &LoadOptions::default()).err().unwrap().to_string();
    assert!(message.contains("num_layers is 1, expected 2, as in the weights"), "{message}");
    let inspected = inspect(copy.path().to_str().unwrap()).unwrap();
    assert_eq!(inspected.problem.as_deref(), Some(message.as_str()));
}

/// A matrix in 8 bits with factors of a shape, and what it stands for.
struct Narrow {
    stored: Vec<Raw>,
    meant: Tensor,
}

fn fp8(name: &str, matrix: &Tensor, [down, across]: [usize; 2], factor: &str) -> Narrow {
    let factors = factors_of(matrix, [down, across], 448.0);
    let spread = spread(&factors, matrix);
    let narrow = (matrix / &spread).unwrap().to_dtype(DType::F8E4M3).unwrap();
    let meant = (narrow.to_dtype(DType::F32).unwrap() * spread).unwrap();
    let module = name.strip_suffix("weight").unwrap();
    Narrow { stored: vec![raw(name, &narrow), raw(&format!("{module}{factor}"), &factors)], meant }
}

fn int8(name: &str, matrix: &Tensor, [weight, factor]: [&str; 2], times: f64) -> Narrow {
    let factors = factors_of(matrix, [matrix.dims()[0], 1], 127.0);
    let numbers = matrix.broadcast_div(&factors).unwrap().round().unwrap();
    let meant = numbers.broadcast_mul(&factors).unwrap();
    let bytes = bytes_of(&numbers.flatten_all().unwrap().to_vec1::<f32>().unwrap(), |v| [v as i8 as u8]);
    let module = name.strip_suffix("weight").unwrap();
    let stored = (format!("{module}{weight}"), Dtype::I8, matrix.dims().to_vec(), bytes);
    Narrow { stored: vec![stored, raw(&format!("{module}{factor}"), &(factors * times).unwrap())], meant }
}

/// The largest number of every block over the largest of a format.
fn factors_of(matrix: &Tensor, [down, across]: [usize; 2], largest: f64) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    let blocks = matrix.abs().unwrap().reshape((down, rows / down, across, columns / across)).unwrap();
    (blocks.max(3).unwrap().max(1).unwrap() / largest).unwrap()
}

/// A factor for every number.
fn spread(factors: &Tensor, matrix: &Tensor) -> Tensor {
    let ((down, across), (rows, columns)) = (factors.dims2().unwrap(), matrix.dims2().unwrap());
    let blocks = factors.reshape((down, 1, across, 1)).unwrap();
    let spread = blocks.broadcast_as((down, rows / down, across, columns / across)).unwrap();
    spread.contiguous().unwrap().reshape((rows, columns)).unwrap()
}

#[test]
fn factors_are_used_whatever_their_shape_and_name() {
    let folder = tempfile::tempdir().unwrap();
    let (narrow, wide) = (folder.path().join("narrow.safetensors"), folder.path().join("wide.safetensors"));
    let check = |what: &str, change: &dyn Fn(&str, &Tensor) -> Narrow| {
        let (mut stored, mut meant) = (Vec::new(), Tensors::new());
        for (name, tensor) in renamed("transformer", "authors") {
            if is_matrix(&name, &tensor) {
                let changed = change(&name, &tensor);
                stored.extend(changed.stored);
                meant.insert(name, changed.meant);
            } else {
                stored.push(raw(&name, &tensor));
                meant.insert(name, tensor);
            }
        }
        write_raw(&narrow, &stored, None);
        write_safetensors(&wide, meant, None);
        assert_eq!(made_with(&narrow), made_with(&wide), "{what}");
    };
    let rows = |matrix: &Tensor| matrix.dims()[0];
    check("fp8, one", &|name, matrix| fp8(name, matrix, [1, 1], "scale_weight"));
    check("fp8, another name", &|name, matrix| fp8(name, matrix, [1, 1], "weight_scale_inv"));
    check("fp8, a row", &|name, matrix| fp8(name, matrix, [rows(matrix), 1], "weight_scale"));
    check("fp8, a row and 128 columns", &|name, matrix| {
        fp8(name, matrix, [rows(matrix), matrix.dims()[1] / 128], "weight_scale")
    });
    check("fp8, a row and 64 columns", &|name, matrix| {
        fp8(name, matrix, [rows(matrix), matrix.dims()[1] / 64], "weight_scale")
    });
    check("fp8, blocks of 128", &|name, matrix| {
        fp8(name, matrix, [rows(matrix) / 128, matrix.dims()[1] / 128], "weight_scale_inv")
    });
    check("int8, a row", &|name, matrix| int8(name, matrix, ["weight", "weight_scale"], 1.0));
    check("int8 of Quanto", &|name, matrix| int8(name, matrix, ["weight._data", "weight._scale"], 1.0));
    check("int8 of bitsandbytes", &|name, matrix| {
        let mut made = int8(name, matrix, ["weight", "SCB"], 127.0);
        // The factor there is, rounded as the reader rounds it.
        let read = Tensor::new(1.0f32 / 127.0, &Device::Cpu).unwrap();
        let factors = factors_of(matrix, [rows(matrix), 1], 127.0);
        let read = (factors * 127.0).unwrap().broadcast_mul(&read).unwrap();
        let numbers = matrix.broadcast_div(&factors_of(matrix, [rows(matrix), 1], 127.0)).unwrap().round().unwrap();
        made.meant = numbers.broadcast_mul(&read).unwrap();
        made
    });
}

#[test]
fn factors_that_are_missing_or_of_another_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("narrow.safetensors");
    let with = |change: &dyn Fn(&str, &Tensor) -> Vec<Raw>| {
        let stored = renamed("transformer", "authors").into_iter();
        let stored: Vec<Raw> = stored
            .flat_map(|(name, tensor)| match name.as_str() {
                "blocks.0.self_attn.q.weight" => change(&name, &tensor),
                _ => vec![raw(&name, &tensor)],
            })
            .collect();
        write_raw(&path, &stored, None);
        refused(&path)
    };
    let q = "blocks.0.self_attn.q";
    let message = with(&|name, matrix| int8(name, matrix, ["weight", "x"], 1.0).stored[..1].to_vec());
    assert!(message.contains("expected factors beside 8-bit integers") && message.contains(q), "{message}");
    let message = with(&|name, matrix| {
        let mut stored = fp8(name, matrix, [1, 1], "weight_scale").stored;
        stored.push(raw(&format!("{q}.weight_scale_2"), &ones(&[])));
        stored
    });
    assert!(message.contains("not read by that model") && message.contains("weight_scale_2"), "{message}");
    let message = with(&|name, matrix| {
        let mut stored = fp8(name, matrix, [1, 1], "weight_scale").stored;
        let said = br#"{"format": "nvfp4"}"#.to_vec();
        stored.push((format!("{q}.comfy_quant"), Dtype::U8, vec![said.len()], said));
        stored
    });
    assert!(message.contains("\"nvfp4\" is not supported"), "{message}");
    let message = with(&|name, matrix| {
        vec![raw(name, &matrix.to_dtype(DType::F8E4M3).unwrap()), raw(&format!("{q}.weight_scale"), &ones(&[3]))]
    });
    assert!(message.contains("factors [3] do not fit a matrix [256, 256]"), "{message}");
}

#[test]
fn what_training_code_leaves_around_weights_is_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let prefixed = |prefix: &str| -> Tensors {
        let tensors = renamed("transformer", "authors").into_iter();
        tensors
            .map(|(name, tensor)| {
                let inside = name.replacen("blocks.0.", "blocks.0._fsdp_wrapped_module.", 1);
                (format!("{prefix}{inside}"), tensor)
            })
            .collect()
    };
    for prefix in ["pipe.dit.", "model._fsdp_wrapped_module.", "module._orig_mod.", "net.", "generator_ema.model."] {
        write_safetensors(&at("wrapped.safetensors"), prefixed(prefix), None);
        assert_eq!(made_with(&at("wrapped.safetensors")), REFERENCE.1, "{prefix}");
    }
    let mut twice = renamed("transformer", "authors");
    twice.insert("blocks.0._orig_mod.self_attn.q.weight".to_string(), ones(&[256, 256]));
    write_safetensors(&at("wrapped.safetensors"), twice, None);
    let message = refused(&at("wrapped.safetensors"));
    assert!(message.contains("blocks.0.self_attn.q.weight: there twice"), "{message}");
    let (averaged, other) = (prefixed("model."), prefixed("model.").into_iter());
    let other: Tensors = other.map(|(name, tensor)| (name, (tensor * 2.0).unwrap())).collect();
    for (file, dictionaries, both) in [
        ("ema.pt", vec![("generator_ema", &averaged)], false),
        ("plain.pt", vec![("generator", &averaged)], false),
        ("both.pt", vec![("generator", &other), ("generator_ema", &averaged), ("critic", &other)], true),
    ] {
        write_torch(&at(file), &dictionaries);
        assert_eq!(made_with(&at(file)), REFERENCE.1, "{file}");
        let notes = &inspect(at(file).to_str().unwrap()).unwrap().weights[0].notes;
        let said = notes.iter().any(|note| note.contains("critic, generator too; only the weights of generator_ema"));
        assert_eq!((said, notes.is_empty()), (both, !both), "{notes:?}");
    }
    // The same as names in one file, and a pipeline's other parts beside it.
    let mut all = prefixed("generator_ema.");
    all.extend(prefixed("generator.").into_iter().map(|(name, tensor)| (name, (tensor * 2.0).unwrap())));
    all.extend(
        renamed("vae", "authors").into_iter().map(|(name, tensor)| (format!("first_stage_model.{name}"), tensor)),
    );
    write_safetensors(&at("all.safetensors"), all, None);
    assert_eq!(made_with(&at("all.safetensors")), REFERENCE.1);
    let notes = inspect(at("all.safetensors").to_str().unwrap()).unwrap().weights[0].notes.join(" ");
    assert!(notes.contains("not used: first_stage_model.*, generator.*"), "{notes}");
}

/// Moves the weights of a component of the reference's folder elsewhere in it.
fn rearranged(component: &str, files: &[(&str, Tensors)]) -> TempDir {
    let folder = packed::copy();
    let place = folder.path().join(component);
    let stem = if component.ends_with("_encoder") { "model" } else { "diffusion_pytorch_model" };
    std::fs::remove_file(place.join(format!("{stem}.safetensors"))).unwrap();
    for (file, tensors) in files {
        match file.ends_with(".bin") {
            true => write_torch(&place.join(file), &[("", tensors)]),
            false => write_safetensors(&place.join(file), tensors.clone(), None),
        }
    }
    folder
}

#[test]
fn weights_in_a_diffusers_folder_have_other_names_too() {
    let all = component("transformer");
    let (first, second): (Vec<_>, Vec<_>) =
        all.clone().into_iter().partition(|(name, _)| name.starts_with("blocks.0."));
    let shards = [
        ("diffusion_pytorch_model-00001-of-00002.safetensors", first.into_iter().collect::<Tensors>()),
        ("diffusion_pytorch_model-00002-of-00002.safetensors", second.into_iter().collect()),
    ];
    let text = component("text_encoder");
    let (one, bin) = ("diffusion_pytorch_model.fp16.safetensors", "pytorch_model.bin");
    for (folder, what) in [
        (rearranged("transformer", &shards), "shards without an index"),
        (rearranged("transformer", &[(one, all.clone())]), "a variant"),
        (rearranged("text_encoder", &[(bin, text.clone())]), "as PyTorch writes it"),
        (rearranged("text_encoder", &[(bin, text.clone()), ("model.fp16.safetensors", text.clone())]), "both"),
        (rearranged("vae", &[("vae.SFT", component("vae"))]), "a short ending"),
    ] {
        assert_eq!(latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap(), REFERENCE.1, "{what}");
    }
    let two = rearranged("text_encoder", &[("model.fp16.safetensors", text.clone()), ("b.safetensors", text)]);
    let message = latents(two.path().to_str().unwrap(), LoadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("found b.safetensors and model.fp16.safetensors"), "{message}");
    let cut = rearranged("transformer", &shards[..1]);
    let message = latents(cut.path().to_str().unwrap(), LoadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("-00002-of-00002.safetensors: expected 00002 shards, this one is missing"), "{message}");
}

#[test]
fn loose_files_have_short_endings_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (part, name) in [
        ("transformer", "wan.sft"),
        ("text_encoder", "umt5.SAFETENSORS"),
        ("vae", "vae.sft"),
        ("image_encoder", "clip.Sft"),
    ] {
        std::fs::copy(file_of(part), at(name)).unwrap();
    }
    std::fs::copy(packed::golden().join("tokenizer/spiece.model"), at("spiece.model")).unwrap();
    // Heads have 128 channels where nothing says otherwise, as here.
    assert_eq!(latents(folder.path().to_str().unwrap(), LoadOptions::default()).unwrap(), REFERENCE.1);
}

/// HunyuanVideo's authors keep the factors of their 8-bit transformer in a file of their own.
#[test]
fn factors_in_a_second_file_are_found() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hunyuan");
    let folder = tempfile::tempdir().unwrap();
    let weights: PathBuf = folder.path().join("mp_rank_00_model_states_fp8.pt");
    let factors = folder.path().join("mp_rank_00_model_states_fp8_map.pt");
    let shapes = tiny::index_in(&golden).remove("authors").unwrap();
    let (mut narrow, mut map, mut wide) = (Tensors::new(), Tensors::new(), Tensors::new());
    for (name, shape) in &shapes {
        let values = tiny::values("authors", name, shape);
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
        let linear = name.ends_with(".weight") && shape.len() == 2 && name.contains("_blocks.");
        if !linear {
            wide.insert(name.clone(), tensor.clone());
            narrow.insert(name.clone(), tensor);
            continue;
        }
        let factor = factors_of(&tensor, [1, 1], 448.0);
        let small = tensor.broadcast_div(&factor).unwrap().to_dtype(DType::F8E4M3).unwrap();
        wide.insert(name.clone(), small.to_dtype(DType::F32).unwrap().broadcast_mul(&factor).unwrap());
        narrow.insert(name.clone(), small);
        map.insert(name.strip_suffix(".weight").unwrap().to_string(), factor.i((0, 0)).unwrap());
    }
    let plain = folder.path().join("wide.pt");
    write_torch(&weights, &[("module", &narrow)]);
    write_torch(&plain, &[("module", &wide)]);
    let read = |path: &Path| {
        let found = navicache_weights::Found::open(&navicache_weights::layout::groups(path).unwrap()[0]);
        let tensors = found.map_err(|error| error.to_string())?.tensors;
        let names: Vec<String> = tensors.listed().map(|(name, _)| name.to_string()).collect();
        let all = names.into_iter().map(|name| {
            let tensor = navicache_models::Source::load(&tensors, &name, Some(DType::F32), &Device::Cpu).unwrap();
            (name, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        });
        Ok::<_, String>(all.collect::<Vec<_>>())
    };
    let message = read(&weights).unwrap_err();
    assert!(
        message.contains("expected the factors of its 8-bit weights in") && message.contains("_map.pt"),
        "{message}"
    );
    write_torch(&factors, &[("", &map)]);
    assert_eq!(read(&weights).unwrap(), read(&plain).unwrap());
    assert_eq!(read(&factors).unwrap(), read(&plain).unwrap(), "whichever of the two is named");
    std::fs::remove_file(plain).unwrap();
    let sets = navicache_weights::layout::groups(folder.path()).unwrap();
    assert_eq!(sets, [vec![weights, factors]], "both are one set of weights");
}

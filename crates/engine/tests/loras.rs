//! LoRAs: what is added to a transformer's weights, in every form that people have.

mod packed;
mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use navicache_engine::{Event, Files, LoadOptions, Lora, Pipeline, generate};
use navicache_models::Source;
use navicache_weights::{Found, Tensors as Weights, add_lora};
use packed::{REFERENCE, Raw, Tensors, component, distance, latents, raw, write_raw, write_safetensors};

/// Two blocks of a LoRA in a style of naming, and the same added to the weights.
fn lora(folder: &Path, style: &str) -> (PathBuf, Tensors) {
    let mut merged = component("transformer");
    let mut file = Vec::new();
    let modules = [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q", 256, 256),
        ("blocks.1.ffn.net.2", "blocks.1.ffn.2", 256, 512),
        ("blocks.1.attn2.to_out.0", "blocks.1.cross_attn.o", 256, 256),
    ];
    for (seed, (diffusers, authors, outputs, inputs)) in modules.into_iter().enumerate() {
        let (down, up) = (randn(seed as u64, &[4, inputs]), randn(seed as u64 + 10, &[outputs, 4]));
        let (names, alpha) = match style {
            "diffusers" => (
                [format!("transformer.{diffusers}.lora_A.weight"), format!("transformer.{diffusers}.lora_B.weight")],
                None,
            ),
            "comfy" => (
                [
                    format!("diffusion_model.{authors}.lora_down.weight"),
                    format!("diffusion_model.{authors}.lora_up.weight"),
                ],
                Some((format!("diffusion_model.{authors}.alpha"), 2.0)),
            ),
            _ => {
                let flat = authors.replace('.', "_");
                let of = |leaf: &str| format!("lora_unet_{flat}.{leaf}");
                ([of("lora_down.weight"), of("lora_up.weight")], Some((of("alpha"), 2.0)))
            }
        };
        let factor = alpha.as_ref().map_or(1.0, |(_, alpha)| alpha / 4.0);
        let weight = merged.get_mut(&format!("{diffusers}.weight")).unwrap();
        *weight = (&*weight + (up.matmul(&down).unwrap() * (0.5 * factor)).unwrap()).unwrap();
        let [name_down, name_up] = names;
        file.extend([(name_down, down), (name_up, up)]);
        file.extend(alpha.map(|(name, alpha)| (name, Tensor::new(alpha as f32, &Device::Cpu).unwrap())));
    }
    let path = folder.join(format!("{style}.safetensors"));
    write_safetensors(&path, file, None);
    (path, merged)
}

#[test]
fn loras_are_added_to_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let diffusers = REFERENCE.0.path().to_str().unwrap();
    for style in ["diffusers", "comfy", "kohya"] {
        let (path, merged) = lora(folder.path(), style);
        let file = folder.path().join("merged.safetensors");
        write_safetensors(&file, merged, None);
        let files = Files { transformer: Some(file), ..Files::default() };
        let expected = latents(diffusers, LoadOptions { files, ..LoadOptions::default() }).unwrap();
        assert!(distance(&expected, &REFERENCE.1) > 1e-3, "it has to change something");
        let with = |weight: f64, memory: Option<u64>| {
            let loras = vec![Lora { path: path.clone(), weight, expert: None }];
            latents(diffusers, LoadOptions { loras, memory, ..LoadOptions::default() }).unwrap()
        };
        assert!(distance(&with(0.5, None), &expected) < 1e-5, "{style}: {:.1e}", distance(&with(0.5, None), &expected));
        assert_eq!(with(0.5, Some(1_500_000)), with(0.5, None), "{style}, on weights that are streamed");
        assert_eq!(with(0.0, None), REFERENCE.1, "{style}");
    }
}

#[test]
fn loras_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error_of = |tensors: Vec<(&str, &[usize])>, value: f32| {
        let path = folder.path().join("wrong.safetensors");
        let made =
            tensors.into_iter().map(|(n, shape)| (n.to_string(), Tensor::full(value, shape, &Device::Cpu).unwrap()));
        write_safetensors(&path, made, None);
        let loras = vec![Lora { path, weight: 1.0, expert: None }];
        Pipeline::open(REFERENCE.0.path().to_str().unwrap(), &LoadOptions { loras, ..LoadOptions::default() })
            .err()
            .unwrap()
            .to_string()
    };
    let error = |tensors| error_of(tensors, 1.0);
    let q = "diffusion_model.blocks.0.self_attn.q";
    let (down, up) = (&format!("{q}.lora_down.weight"), &format!("{q}.lora_up.weight"));
    let says = |message: String, part: &str| assert!(message.contains(part), "{message}");
    says(error(vec![(down, &[4, 128]), (up, &[256, 4])]), "expected [256, 256]");
    says(error(vec![(down, &[4, 256]), (up, &[256, 8])]), "(out, rank) and (rank, in)");
    says(error(vec![(down, &[4, 256])]), "expected both");
    says(
        error(vec![("lora_unet_other.lora_down.weight", &[4, 8]), ("lora_unet_other.lora_up.weight", &[8, 4])]),
        "none of its 1 modules changes this model; the first is lora_unet_other: it is not in this model",
    );
    says(error_of(vec![(down, &[4, 256]), (up, &[256, 4])], 0.0), "it changes nothing: all of its 1 modules are zero");
    says(error(vec![("blocks.0.self_attn.q.weight", &[4, 8])]), "expected a LoRA");
    let dora = format!("{q}.dora_scale");
    says(error(vec![(down, &[4, 256]), (up, &[256, 4]), (&dora, &[1, 256])]), "expected 256 norms, one a row");
    says(error(vec![(&dora, &[256])]), "expected the matrices of a LoRA");
    let (oft, tucker) = (format!("{q}.oft_blocks"), format!("{q}.hada_t1"));
    says(error(vec![(&oft, &[4, 8, 8])]), "OFT is not supported");
    says(error(vec![(&tucker, &[4, 4, 1, 1])]), "LoHa of convolutions (Tucker) is not supported");
}

/// Adapters that PEFT and diffusers wrote change weights as they do: `tools/golden/loras.py`.
#[test]
fn weights_are_those_that_peft_makes() {
    let golden = tiny::golden().join("../loras");
    let merged = candle_core::safetensors::load(golden.join("merged.safetensors"), &Device::Cpu).unwrap();
    let folder = tiny::pipeline();
    let file = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let read = |tensors: &Weights, name: &str| {
        let tensor = tensors.load(name, Some(DType::F32), &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let plain = Found::open(std::slice::from_ref(&file)).unwrap().tensors;
    let mut checked = 0;
    for kind in ["alpha", "rslora", "patterns", "biases", "dora", "loha", "lokr", "lokr_whole", "lokr_both", "header"] {
        let name = if kind == "header" { "pytorch_lora_weights" } else { "adapter_model" };
        let path = golden.join(kind).join(format!("{name}.safetensors"));
        let changed = |weight: f64| {
            let mut tensors = Found::open(std::slice::from_ref(&file)).unwrap().tensors;
            assert_eq!(
                add_lora(&mut tensors, &Lora { path: path.clone(), weight, expert: None }).unwrap(),
                [],
                "{kind}"
            );
            tensors
        };
        let (whole, half) = (changed(1.0), changed(0.5));
        for (tensor, _) in plain.listed() {
            let (base, found) = (read(&plain, tensor), read(&whole, tensor));
            let Some(expected) = merged.get(&format!("{kind}/{tensor}")) else {
                assert_eq!(found, base, "{kind} {tensor} is not changed");
                continue;
            };
            let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(distance(&expected, &base) > 1e-2, "{kind} {tensor} is changed");
            assert!(distance(&found, &expected) < 1e-6, "{kind} {tensor}: {:.1e}", distance(&found, &expected));
            let middle: Vec<f32> = base.iter().zip(&expected).map(|(a, b)| (a + b) / 2.0).collect();
            assert!(distance(&read(&half, tensor), &middle) < 1e-6, "{kind} {tensor}: half of it");
            checked += 1;
        }
    }
    assert_eq!(checked, merged.len());
}

/// A LoRA of one module, or of several, as it is written in a file: the module's name and what follows it.
fn written(folder: &Path, file: &str, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) -> PathBuf {
    let raw: Vec<Raw> = tensors.iter().map(|(name, tensor)| raw(name, tensor)).collect();
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let path = folder.join(file);
    write_raw(&path, &raw, Some(metadata));
    path
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let values = navicache_engine::noise::randn(seed, shape.iter().product());
    (Tensor::from_vec(values, shape, &Device::Cpu).unwrap() * 0.05).unwrap()
}

fn with_lora(path: &Path) -> Vec<f32> {
    let loras = vec![Lora { path: path.to_path_buf(), weight: 1.0, expert: None }];
    latents(REFERENCE.0.path().to_str().unwrap(), LoadOptions { loras, ..LoadOptions::default() }).unwrap()
}

#[test]
fn strength_is_said_by_a_tensor_the_header_or_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let module = "transformer.blocks.0.attn1.to_q";
    let pair = || {
        vec![
            (format!("{module}.lora_A.weight"), randn(1, &[4, 256])),
            (format!("{module}.lora_B.weight"), randn(2, &[256, 4])),
        ]
    };
    let plain = with_lora(&written(folder.path(), "plain.safetensors", &pair(), &[]));
    let alpha = Tensor::new(8.0f32, &Device::Cpu).unwrap();
    let by_tensor: Vec<_> = pair().into_iter().chain([(format!("{module}.alpha"), alpha)]).collect();
    let doubled = with_lora(&written(folder.path(), "tensor.safetensors", &by_tensor, &[]));
    assert_ne!(plain, doubled);
    let json = r#"{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {}}"#;
    for (file, metadata) in [
        ("json.safetensors", vec![("format", "pt"), ("lora_adapter_metadata", json)]),
        ("keys.safetensors", vec![("transformer.r", "4"), ("transformer.lora_alpha", "8")]),
    ] {
        assert_eq!(with_lora(&written(folder.path(), file, &pair(), &metadata)), doubled, "{file}");
    }
    // A tensor goes before the header.
    let told = written(folder.path(), "both.safetensors", &by_tensor, &[("lora_alpha", "4"), ("r", "4")]);
    assert_eq!(with_lora(&told), doubled);
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"r": 4, "lora_alpha": 8}"#).unwrap();
    assert_eq!(with_lora(&written(folder.path(), "plain.safetensors", &pair(), &[])), doubled);
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"r": 8, "lora_alpha": 8}"#).unwrap();
    let loras = vec![Lora { path: folder.path().join("plain.safetensors"), weight: 1.0, expert: None }];
    let options = LoadOptions { loras, ..LoadOptions::default() };
    let message = Pipeline::open(REFERENCE.0.path().to_str().unwrap(), &options).err().unwrap().to_string();
    assert!(message.contains("expected a rank of 8, as ") && message.contains("found 4"), "{message}");
}

#[test]
fn names_of_modules_are_those_of_many_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let (down, up) = (randn(1, &[4, 256]), randn(2, &[256, 4]));
    let mut expected = None;
    for (down_name, up_name) in [
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"),
        (
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight",
        ),
        ("blocks.0.self_attn.q.lora_A.default.weight", "blocks.0.self_attn.q.lora_B.default.weight"),
        ("base_model.model.blocks.0.self_attn.q.lora_A.weight", "base_model.model.blocks.0.self_attn.q.lora_B.weight"),
        (
            "base_model.model.transformer.blocks.0.attn1.to_q.lora_A.x.weight",
            "base_model.model.transformer.blocks.0.attn1.to_q.lora_B.x.weight",
        ),
        ("pipe.dit.blocks.0.self_attn.q.lora_A.weight", "pipe.dit.blocks.0.self_attn.q.lora_B.weight"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.lora_up.weight"),
        ("lora_unet__blocks_0_self_attn_q.lora_down.weight", "lora_unet__blocks_0_self_attn_q.lora_up.weight"),
        ("lycoris_blocks_0_attn1_to_q.lora_down.weight", "lycoris_blocks_0_attn1_to_q.lora_up.weight"),
        ("unet.blocks.0.attn1.to_q.lora.down.weight", "unet.blocks.0.attn1.to_q.lora.up.weight"),
        ("model.diffusion_model.blocks.0.self_attn.q.lora_A", "model.diffusion_model.blocks.0.self_attn.q.lora_B"),
    ] {
        write_safetensors(&path, [(down_name.to_string(), down.clone()), (up_name.to_string(), up.clone())], None);
        let found = with_lora(&path);
        assert!(distance(&found, &REFERENCE.1) > 1e-4, "{down_name}");
        assert_eq!(&found, expected.get_or_insert(found.clone()), "{down_name}");
    }
}

#[test]
fn differences_are_added_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let merged = folder.path().join("merged.safetensors");
    for (name, changed, shape) in [
        ("diffusion_model.blocks.0.diff_m", "blocks.0.scale_shift_table", vec![1, 6, 256]),
        ("diffusion_model.blocks.0.modulation.diff", "blocks.0.scale_shift_table", vec![1, 6, 256]),
        ("diffusion_model.head.diff_m", "scale_shift_table", vec![1, 2, 256]),
        ("diffusion_model.blocks.1.self_attn.norm_q.diff", "blocks.1.attn1.norm_q.weight", vec![256]),
        ("diffusion_model.blocks.1.norm3.diff_b", "blocks.1.norm2.bias", vec![256]),
        ("lora_unet_blocks_1_norm3.w_norm", "blocks.1.norm2.weight", vec![256]),
        ("diffusion_model.patch_embedding.diff", "patch_embedding.weight", vec![256, 36, 1, 2, 2]),
    ] {
        let difference = (randn(3, &shape) * 4.0).unwrap();
        write_safetensors(&path, [(name.to_string(), difference.clone())], None);
        let mut tensors = component("transformer");
        let sum = (&tensors[changed] + difference).unwrap();
        tensors.insert(changed.to_string(), sum);
        write_safetensors(&merged, tensors, None);
        let files = Files { transformer: Some(merged.clone()), ..Files::default() };
        let options = LoadOptions { files, ..LoadOptions::default() };
        let expected = latents(REFERENCE.0.path().to_str().unwrap(), options).unwrap();
        assert!(distance(&expected, &REFERENCE.1) > 1e-5, "{name}: {:.1e}", distance(&expected, &REFERENCE.1));
        assert_eq!(with_lora(&path), expected, "{name}");
    }
    // A bias of the second matrix is one of the module, times the strength.
    let module = "transformer.blocks.0.attn1.to_q";
    let (down, up, bias) = (randn(1, &[4, 256]), randn(2, &[256, 4]), randn(5, &[256]));
    let pair = || [(format!("{module}.lora_A.weight"), down.clone()), (format!("{module}.lora_B.weight"), up.clone())];
    let mut found = Vec::new();
    for name in ["lora_B.bias", "diff_b"] {
        let tensors: Vec<_> = pair().into_iter().chain([(format!("{module}.{name}"), bias.clone())]).collect();
        found.push(with_lora(&written(folder.path(), "bias.safetensors", &tensors, &[])));
    }
    assert_eq!(found[0], found[1]);
    assert_ne!(found[0], with_lora(&written(folder.path(), "bias.safetensors", &pair(), &[])));
}

#[test]
fn a_module_that_does_not_fit_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let q = "diffusion_model.blocks.0.self_attn.q";
    let fits =
        vec![(format!("{q}.lora_A.weight"), randn(1, &[4, 256])), (format!("{q}.lora_B.weight"), randn(2, &[256, 4]))];
    let patch = "diffusion_model.patch_embedding";
    let other = [
        (format!("{patch}.lora_A.weight"), randn(3, &[4, 16, 1, 2, 2])),
        (format!("{patch}.lora_B.weight"), randn(4, &[256, 4, 1, 1, 1])),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight".to_string(), randn(5, &[4, 8])),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight".to_string(), randn(6, &[8, 4])),
    ];
    let plain = with_lora(&written(folder.path(), "plain.safetensors", &fits, &[]));
    let all: Vec<_> = fits.into_iter().chain(other.clone()).collect();
    let path = written(folder.path(), "all.safetensors", &all, &[]);
    assert_eq!(with_lora(&path), plain);
    let loras = vec![Lora { path: path.clone(), weight: 1.0, expert: None }];
    let options = LoadOptions { loras, ..LoadOptions::default() };
    let pipeline = Pipeline::open(REFERENCE.0.path().to_str().unwrap(), &options).unwrap();
    let mut said = Vec::new();
    let _ = generate(&pipeline, &packed::request(), &mut |event| {
        if let Event::Warning(text) = event {
            said.push(text.to_string());
        }
        ControlFlow::Continue(())
    });
    let said = said.join("\n");
    let expected = "expected [256, 36, 1, 2, 2], the shape of patch_embedding.weight, found a change of [256, 64]";
    assert!(said.contains("left out 2 of its modules") && said.contains(expected), "{said}");

    let path = written(folder.path(), "other.safetensors", &other, &[]);
    let loras = vec![Lora { path, weight: 1.0, expert: None }];
    let options = LoadOptions { loras, ..LoadOptions::default() };
    let message = Pipeline::open(REFERENCE.0.path().to_str().unwrap(), &options).err().unwrap().to_string();
    assert!(message.contains("none of its 2 modules changes this model") && message.contains(expected), "{message}");
}

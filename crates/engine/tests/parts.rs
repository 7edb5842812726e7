//! What `navicache parts` writes is what a run uses.

mod tiny;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use navicache_engine::{LoadOptions, Pipeline, Request, generate, parts};

fn request() -> Request {
    Request {
        negative_prompt: Some("a blue star spinning on a cream background".to_string()),
        size: Some((64, 32).into()),
        frames: Some(9),
        steps: Some(1),
        guidance: Some(5.0),
        seed: Some(7),
        max_sequence_length: Some(20),
        solver: Some("euler".parse().unwrap()),
        cache: Some("none".parse().unwrap()),
        ..Request::new("a red circle bouncing on a navy background")
    }
}

fn open(folder: &Path) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn written(folder: &Path, request: &Request) -> HashMap<String, Tensor> {
    let path = folder.join("parts.safetensors");
    parts::save(&open(folder), request, &path, &mut |_| ControlFlow::Continue(())).unwrap();
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
    norm(&(found - expected).unwrap()) / norm(expected)
}

/// One step of Euler ends at the noise less the guided velocity.
fn is_what_a_run_uses(folder: &Path, request: &Request, scale: f64) -> HashMap<String, Tensor> {
    let parts = written(folder, request);
    let video = generate(&open(folder), request, &mut |_| ControlFlow::Continue(())).unwrap();
    let cond = &parts["velocity.first.cond"];
    let velocity = match parts.get("velocity.first.uncond") {
        Some(uncond) => (uncond + ((cond - uncond).unwrap() * scale).unwrap()).unwrap(),
        None => cond.clone(),
    };
    let step = &video.report.steps[0];
    let ends = (&parts["noise"] - (velocity * step.sigma).unwrap()).unwrap();
    let known = parts.get("picture.known").map_or(0, |known| known.dim(2).unwrap());
    let free = |t: &Tensor| t.narrow(2, known, t.dim(2).unwrap() - known).unwrap();
    let off = distance(&free(&ends), &free(&video.latents));
    assert!(off < 1e-5, "{folder:?}: {off:.1e}");
    assert_eq!(parts["timesteps"].to_vec1::<f32>().unwrap(), [step.timestep as f32]);
    assert_eq!(distance(&parts["velocity.last.cond"], cond), 0.0, "there is one step");
    parts
}

#[test]
fn wan_from_text_and_from_pictures() {
    let folder = tiny::pipeline();
    let parts = is_what_a_run_uses(folder.path(), &request(), 5.0);
    let golden = candle_core::safetensors::load(tiny::golden().join("expected.safetensors"), &Device::Cpu).unwrap();
    let text = &golden["text.hidden"];
    let (tokens, off) = (text.dim(1).unwrap(), |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>());
    assert!(distance(&parts["text.cond"].narrow(1, 0, tokens).unwrap(), text) < 1e-5);
    assert_eq!(off(&parts["text.cond"].narrow(1, tokens, 20 - tokens).unwrap()).unwrap(), 0.0, "zero beyond its end");
    assert!(distance(&parts["text.cond"], &parts["text.uncond"]) > 0.1);

    let i2v = tiny::with_parts("WanImageToVideoPipeline", false, &[("transformer", "transformer_i2v")]);
    let ti2v = tiny::with_parts("WanPipeline", true, &[("vae", "vae22")]);
    for (folder, names) in [(i2v, &["embedding", "channels"][..]), (ti2v, &["known"])] {
        let image = Some(folder.path().join("picture.png"));
        let request = Request { image, max_sequence_length: Some(512), ..request() };
        let parts = is_what_a_run_uses(folder.path(), &request, 5.0);
        for name in names {
            assert!(parts.contains_key(&format!("picture.{name}")), "{name}: {:?}", parts.keys());
        }
    }
}

#[test]
fn others() {
    is_what_a_run_uses(tiny::cogvideox("2b", "ddim").path(), &request(), 5.0);
    let hunyuan = tiny::pipeline_of(&tiny::golden().join("../hunyuan"));
    let parts = is_what_a_run_uses(hunyuan.path(), &request(), 5.0);
    assert!(parts.contains_key("pooled.cond") && !parts.contains_key("text.uncond"), "{:?}", parts.keys());
}

/// The last step's call is the second transformer's, where two share the steps.
#[test]
fn the_last_call_is_that_of_the_second_transformer() {
    let folder = tiny::experts("WanPipeline");
    let request = Request { steps: Some(8), ..request() };
    let both = written(folder.path(), &request);
    let index = r#"{"_class_name": "WanPipeline"}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let first = written(folder.path(), &request);
    std::fs::remove_dir_all(folder.path().join("transformer")).unwrap();
    std::fs::rename(folder.path().join("transformer_2"), folder.path().join("transformer")).unwrap();
    let second = written(folder.path(), &request);
    assert_eq!(distance(&both["velocity.first.cond"], &first["velocity.first.cond"]), 0.0);
    assert_eq!(distance(&both["velocity.last.uncond"], &second["velocity.last.uncond"]), 0.0);
    assert!(distance(&first["velocity.last.cond"], &second["velocity.last.cond"]) > 1e-2);
}

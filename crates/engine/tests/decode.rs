//! Decoding in tiles, and from latents that were kept.

mod tiny;

use std::ops::ControlFlow;
use std::path::Path;

use navicache_engine::control::cache::CacheSpec;
use navicache_engine::{
    Error, Event, LoadOptions, Pipeline, Request, Stage, Tiling, decode_latents, generate, generate_to,
};

fn pipeline(folder: &Path, memory: Option<u64>) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions { memory, ..LoadOptions::default() }).unwrap()
}

fn request() -> Request {
    Request {
        size: Some((320, 192).into()),
        frames: Some(9),
        steps: Some(1),
        guidance: Some(1.0),
        max_sequence_length: Some(20),
        cache: Some("none".parse::<CacheSpec>().unwrap()),
        ..Request::new("a red circle")
    }
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn tiles_are_close_to_the_whole() {
    let folder = tiny::pipeline();
    let pipeline = pipeline(folder.path(), None);
    let mut tiles = 0;
    let mut frames = |tile: Tiling| {
        let mut count = |event: Event| {
            tiles += matches!(event, Event::Tile { .. }) as usize;
            ControlFlow::Continue(())
        };
        let request = Request { tile, ..request() };
        generate(&pipeline, &request, &mut count).unwrap().frames
    };
    let (whole, tiled) = (frames(Tiling::Off), frames(Tiling::Pixels(160)));
    assert_eq!(frames(Tiling::Auto), whole, "there is memory enough for the whole");
    assert_eq!(tiles, 6);
    assert_eq!(whole.len(), tiled.len());
    let sum: u64 = whole.iter().zip(&tiled).map(|(a, b)| a.abs_diff(*b) as u64).sum();
    let mean = sum as f64 / whole.len() as f64;
    assert!(mean > 0.0 && mean < 1.0, "mean difference of {mean:.3} grey levels");
}

#[test]
fn a_picture_is_encoded_in_windows_where_memory_is_short() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layouts");
    let folder = tiny::pipeline_of(&golden);
    let request = Request { image: Some(tiny::golden().join("picture.png")), tile: Tiling::Off, ..request() };
    let latents = |memory: Option<u64>| {
        let video = generate(&pipeline(folder.path(), memory), &request, &mut go_on).unwrap();
        video.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (whole, windows) = (latents(None), latents(Some(60 << 20)));
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| (v as f64).powi(2)).sum::<f64>();
    let distance = sum(&mut whole.iter().zip(&windows).map(|(a, b)| a - b)) / sum(&mut whole.iter().copied());
    assert!(distance > 0.0 && distance.sqrt() < 2e-2, "{:.1e}", distance.sqrt());
}

#[test]
fn latents_outlive_a_decoding_that_was_stopped() {
    let folder = tiny::pipeline();
    let pipeline = pipeline(folder.path(), None);
    let whole = generate(&pipeline, &request(), &mut go_on).unwrap().frames;
    let rescue = folder.path().join("out.mp4.latents.safetensors");
    let stopped = generate_to(&pipeline, &request(), &folder.path().join("out.mp4"), &mut |event| match event {
        Event::Stage(Stage::Decode) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::DecodingCancelled)));
    let clip = decode_latents(&pipeline, &rescue, Tiling::Auto, None, &mut go_on).unwrap();
    assert_eq!((clip.width, clip.height), (320, 192));
    assert_eq!(clip.frames, whole);

    let demo = Pipeline::open("demo", &LoadOptions::default()).unwrap();
    let message = decode_latents(&demo, &rescue, Tiling::Auto, None, &mut go_on).unwrap_err().to_string();
    assert!(message.contains("expected [1, 16, 3, 24, 40]"), "{message}");
}

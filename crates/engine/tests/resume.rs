//! A generation that is stopped after any step, and goes on from its checkpoint, makes the same video in every bit; and
//! what is no checkpoint of it is refused by name.

mod forged;
mod tiny;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use forged::Forger;
use navicache_engine::control::cache::{
    Approx, Asks, At, Decision, Guard, Measure, Measurements, Method, Policy, Question, Run, Subject,
};
use navicache_engine::replay::samples::SAMPLES;
use navicache_engine::{
    Checkpoint, DtypeChoice, Error, Event, Every, LoadOptions, Lora, Pipeline, Request, Resume, Size, Stage, Tiling,
    Video, cache_argument, generate, generate_with,
};
use serde_json::{Value, json};

const STEPS: usize = 10;

fn demo() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| Pipeline::open("demo", &LoadOptions::default()).unwrap())
}

fn open(folder: &Path) -> Pipeline {
    Pipeline::open(folder.to_str().unwrap(), &LoadOptions::default()).unwrap()
}

fn request(cache: &str) -> Request {
    Request {
        size: Some(Size { width: 32, height: 32 }),
        frames: Some(5),
        steps: Some(STEPS),
        seed: Some(3),
        tile: Tiling::Off,
        cache: Some(cache_argument(cache).unwrap()),
        ..Request::new("a red circle bouncing on a navy background")
    }
}

fn make(pipeline: &Pipeline, request: &Request) -> Result<Video, Error> {
    generate(pipeline, request, &mut |_| ControlFlow::Continue(()))
}

fn checkpoint(path: &Path, stop_after: usize) -> Option<Checkpoint> {
    let every = Every::Steps(NonZeroUsize::new(1000).unwrap());
    Some(Checkpoint { path: path.to_path_buf(), every, stop_after: NonZeroUsize::new(stop_after), keep: false })
}

fn resume(path: &Path) -> Option<Resume> {
    Some(Resume { path: path.to_path_buf(), allow_other_build: false })
}

/// A request that says nothing but where to go on from.
fn only(path: &Path) -> Request {
    Request { tile: Tiling::Off, resume: resume(path), ..Request::default() }
}

/// Makes so many steps and leaves a checkpoint.
fn stop_after(pipeline: &Pipeline, request: &Request, steps: usize, path: &Path) {
    let asked = Request { checkpoint: checkpoint(path, steps), ..request.clone() };
    match make(pipeline, &asked).map(|video| video.report.strip) {
        Err(Error::Stopped { step, checkpoint, .. }) => assert_eq!((step, checkpoint.as_path()), (steps, path)),
        other => panic!("expected a stop after {steps} steps, found {other:?}"),
    }
}

/// What a video is, in every bit: latents, frames, and what was decided and measured.
#[derive(PartialEq)]
struct Made {
    latents: Vec<u32>,
    frames: Vec<u8>,
    strip: String,
    seen: BTreeMap<String, u64>,
}

fn made(video: Video) -> Made {
    let seen = video.report.steps.iter().flat_map(|step| {
        step.branches.iter().flat_map(move |(branch, report)| {
            report.seen.iter().map(move |(name, value)| (format!("{} {branch} {name}", step.index), value.to_bits()))
        })
    });
    Made {
        seen: seen.collect(),
        latents: video.latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect(),
        strip: video.report.strip,
        frames: video.frames,
    }
}

/// Cuts a run after some steps, goes on, and compares.
fn compare(pipeline: &Pipeline, request: &Request, cuts: &[usize]) {
    let folder = tempfile::tempdir().unwrap();
    let what = format!("{} {:?}", pipeline.defaults().presets, request.cache.as_ref().map(|spec| spec.to_string()));
    let whole = made(make(pipeline, request).unwrap_or_else(|e| panic!("{what}: {e}")));
    for &cut in cuts {
        let path = folder.path().join(format!("{cut}.ckpt"));
        stop_after(pipeline, request, cut, &path);
        let rest = Request { image: request.image.clone(), ..only(&path) };
        let rest = made(make(pipeline, &rest).unwrap_or_else(|e| panic!("{what}, {cut}: {e}")));
        assert!(rest.strip == whole.strip, "{what}, after {cut}: {} and {}", rest.strip, whole.strip);
        assert!(rest == whole, "{what}, after {cut}");
    }
}

#[test]
fn the_demo_goes_on_bit_for_bit() {
    for cache in [
        "none",
        "stride,threshold=0.5",
        "stride,threshold=0.5,reuse=step_over",
        "navicache,threshold=0.3,align_steps=3,reuse=linear",
        "dbcache,threshold=0.2,reuse=taylor",
        "pab",
        "fastercache",
        "dicache,threshold=0.15",
    ] {
        compare(demo(), &request(cache), &[1, 5, 8]);
    }
}

#[test]
fn every_family_goes_on_bit_for_bit() {
    for (name, folder, request) in tiny::every_kind(&request("none")) {
        let (methods, cuts): ([&str; 2], &[usize]) = match name {
            "hunyuan" => (["trend,threshold=0.02,reuse=corrected", "taylorseer,level=units,order=2,interval=2"], &[4]),
            "opensora" => (["easycache,threshold=0.3,warmup_steps=3", "fbcache,threshold=0.2"], &[4, 7]),
            "cogvideox" => (["stride,threshold=0.5", "fbcache,threshold=0.5"], &[4, 7]),
            "cogvideox i2v" => (["trend,threshold=0.5", "pab"], &[4, 7]),
            _ => (["navicache,threshold=0.5,align_steps=3", "stride,threshold=0.5,reuse=corrected"], &[3, 6]),
        };
        let pipeline = open(folder.path());
        for cache in methods {
            let cache = Some(cache_argument(cache).unwrap());
            compare(&pipeline, &Request { cache, ..request.clone() }, cuts);
        }
    }
}

/// Minutes: `cargo test --release -p navicache-engine --test resume -- --ignored --nocapture`.
#[test]
#[ignore = "every method of every family, cut after every step: minutes"]
fn every_method_of_every_family_goes_on_after_any_step() {
    let cuts: Vec<usize> = (1..STEPS).collect();
    for (name, folder, request) in tiny::every_kind(&request("none")) {
        let pipeline = open(folder.path());
        let (mut tried, mut reused) = (0, 0);
        for cache in SAMPLES.iter().flat_map(|sample| sample.eager).filter(|cache| !cache.ends_with(":published")) {
            // Presets are for models of many blocks, and one family has no table of MagCache's.
            let cache = cache.replace("granularity=block", "granularity=block,first_blocks=0.5,last_blocks=0");
            let cache = match cache.split(',').next() {
                Some("dbcache") => format!("{cache},first_blocks=1,last_blocks=0"),
                Some("magcache") if name.starts_with("cogvideox") => format!("{cache},ratios=opensora-1.2,warmup=0.2"),
                _ => cache,
            };
            let request = match cache_argument(&cache) {
                Ok(spec) => Request { cache: Some(spec), ..request.clone() },
                Err(_) => continue, // an option is there twice
            };
            // Not every method goes with every family: one branch, or a solver that adds noise.
            let Ok(video) = make(&pipeline, &request) else { continue };
            reused += usize::from(video.report.totals.units_reused > 0);
            compare(&pipeline, &request, &cuts);
            tried += 1;
        }
        println!("{name}: {tried} settings, of which {reused} reuse, cut after each of {STEPS} steps");
        assert!(tried >= 18 && 2 * reused > tried, "{name}: {tried} tried, {reused} reuse");
    }
}

#[test]
fn a_picture_is_known_by_what_it_is() {
    // The checkpoint knows that there was a picture, and not where.
    let ti2v = tiny::with_parts("WanPipeline", true, &[("vae", "vae22")]);
    let path = ti2v.path().join("cats.ckpt");
    let image = Some(ti2v.path().join("picture.png"));
    let size = Some(Size { width: 64, height: 32 });
    stop_after(&open(ti2v.path()), &Request { image, size, frames: Some(9), ..request("none") }, 2, &path);
    refused(&open(ti2v.path()), &only(&path), &["was made with picture ", "here there is no picture"]);
}

#[test]
fn a_chain_of_single_steps_is_the_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain.ckpt");
    let request = request("mixcache,threshold=5,granularity=block");
    let whole = made(make(demo(), &request).unwrap());
    stop_after(demo(), &request, 1, &path);
    for done in 1..STEPS {
        let next = Request { checkpoint: checkpoint(&path, 1), ..only(&path) };
        match make(demo(), &next) {
            Err(Error::Stopped { step, steps, .. }) => assert_eq!((step, steps), (done + 1, STEPS)),
            Ok(video) => {
                assert_eq!(done + 1, STEPS);
                let seconds = &video.report.totals.seconds;
                assert!(seconds.denoise >= video.report.steps.iter().map(|step| step.seconds).sum::<f64>());
                assert!(seconds.total >= seconds.denoise);
                assert!(made(video) == whole);
            }
            Err(error) => panic!("{error}"),
        }
    }
    // All steps are done: what is left is to decode, again and again. The latents are those of the video.
    assert!(made(make(demo(), &only(&path)).unwrap()) == whole);
    let mut go_on = |_: Event| ControlFlow::Continue(());
    let clip = navicache_engine::decode_latents(demo(), &path, Tiling::Off, None, &mut go_on).unwrap();
    assert!(clip.frames == whole.frames);
}

#[test]
fn texts_and_pictures_are_encoded_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cats.ckpt");
    let whole = made(make(demo(), &request("pab")).unwrap());
    stop_after(demo(), &request("pab"), 4, &path);
    let stages_of = |pipeline: &Pipeline, request: &Request| {
        let mut stages = Vec::new();
        let video = generate(pipeline, request, &mut |event: Event| {
            if let Event::Stage(stage) = event {
                stages.push(stage);
            }
            ControlFlow::Continue(())
        });
        (stages, video.map(made))
    };
    let (_, rest) = stages_of(demo(), &Request { checkpoint: checkpoint(&path, 2), ..only(&path) });
    assert!(matches!(rest, Err(Error::Stopped { step: 6, .. })));
    let (stages, rest) = stages_of(demo(), &only(&path));
    assert!(rest.unwrap() == whole, "the second checkpoint has them too");
    assert!(!stages.is_empty() && !stages.contains(&Stage::Text), "{stages:?}");

    // A file without them, as those of before.
    let forger = Forger::of(std::fs::read(&path).unwrap());
    let without = forger.forged(|header, data| {
        let texts: Vec<String> =
            header.as_object().unwrap().keys().filter(|name| name.starts_with("text.")).cloned().collect();
        assert_eq!(texts.len(), 2, "of two branches");
        let end = |header: &Value, name: &String| header[name]["data_offsets"][1].as_u64().unwrap();
        let cut = texts.iter().map(|name| end(header, name)).max().unwrap();
        texts.iter().for_each(|name| drop(header.as_object_mut().unwrap().remove(name)));
        data.drain(..cut as usize);
        for (_, entry) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__") {
            for offset in entry["data_offsets"].as_array_mut().unwrap() {
                *offset = (offset.as_u64().unwrap() - cut).into();
            }
        }
    });
    let (stages, rest) = stages_of(demo(), &only(&without));
    assert!(rest.unwrap() == whole && stages.contains(&Stage::Text), "{stages:?}");

    // A picture too, as features beside the text and as latents that are known.
    for (name, folder, request) in tiny::every_kind(&request("none")).into_iter().filter(|kind| kind.2.image.is_some())
    {
        let (pipeline, path) = (open(folder.path()), folder.path().join("cats.ckpt"));
        let whole = made(make(&pipeline, &request).unwrap());
        stop_after(&pipeline, &request, 4, &path);
        let (stages, rest) = stages_of(&pipeline, &Request { image: request.image, ..only(&path) });
        assert!(rest.unwrap() == whole, "{name}");
        assert!(!stages.contains(&Stage::Text) && !stages.contains(&Stage::Picture), "{name}: {stages:?}");
    }
}

#[test]
fn latents_to_start_from_are_known_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let [start, other, path] = ["start.safetensors", "other.safetensors", "cats.ckpt"].map(|n| folder.path().join(n));
    for (file, seed) in [(&start, 4), (&other, 5)] {
        make(demo(), &Request { seed: Some(seed), save_latents: Some(file.clone()), ..request("none") }).unwrap();
    }
    let from_file = Request { latents: Some(start.clone()), ..request("none") };
    let whole = made(make(demo(), &from_file).unwrap());
    stop_after(demo(), &from_file, 2, &path);
    // They are part of the state, need not be given again, and stay known.
    let next = Request { checkpoint: checkpoint(&path, 2), ..only(&path) };
    assert!(matches!(make(demo(), &next), Err(Error::Stopped { step: 4, .. })));
    let given = |latents: &Path| Request { latents: Some(latents.to_path_buf()), ..only(&path) };
    refused(demo(), &given(&other), &["was made with latents to start from ", ", here there is latents"]);
    assert!(made(make(demo(), &given(&start)).unwrap()) == whole);
    assert!(made(make(demo(), &only(&path)).unwrap()) == whole);
}

/// Reuses every other step.
struct EveryOther {
    first: usize,
}

struct Counted(usize);

impl Method for EveryOther {
    fn name(&self) -> &str {
        "every_other"
    }

    fn guard(&self, _: usize) -> Guard {
        Guard { first_steps: self.first, last_steps: 1, max_run: None }
    }

    fn policy(&self, _: &Run) -> Box<dyn Policy> {
        Box::new(Counted(0))
    }

    fn options(&self) -> Value {
        json!({"first": self.first})
    }
}

impl Policy for Counted {
    fn asks(&self) -> Asks {
        let change = Subject::Input.by(Measure::ChangeSinceCompute);
        let question = Question { to_decide: vec![change], to_learn: vec![], to_reuse: vec![Approx::Linear] };
        Asks { step: Some(question), ..Asks::default() }
    }

    fn decide(&mut self, _: At, _: &Measurements) -> Decision {
        self.0 += 1;
        if self.0.is_multiple_of(2) { Decision::Compute } else { Decision::Reuse(Approx::Linear) }
    }
}

#[test]
fn methods_of_ones_own_go_on_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.ckpt");
    let request = Request { cache: None, ..request("none") };
    let mut go_on = |_: Event| ControlFlow::Continue(());
    let own = EveryOther { first: 2 };
    let whole = made(generate_with(demo(), &request, &own, &mut go_on).unwrap());
    assert!(whole.strip.contains(".."), "{}", whole.strip);
    let asked = Request { checkpoint: checkpoint(&path, 5), ..request };
    assert!(matches!(generate_with(demo(), &asked, &own, &mut go_on), Err(Error::Stopped { .. })));
    let rest = generate_with(demo(), &only(&path), &own, &mut go_on).unwrap();
    assert!(made(rest) == whole);

    let refused = |method: &dyn Method, part: &str| {
        let mut go_on = |_: Event| ControlFlow::Continue(());
        let message = generate_with(demo(), &only(&path), method, &mut go_on).err().unwrap().to_string();
        assert!(message.contains(part) && message.contains("own.ckpt"), "{message}");
    };
    refused(&EveryOther { first: 3 }, "was made for first 2, this is 3, of the cache method \"every_other\"");
    let message = make(demo(), &only(&path)).err().unwrap().to_string();
    assert!(message.contains("was made with the cache method \"every_other\", this is \"stride\""), "{message}");
}

#[test]
fn a_run_that_is_interrupted_leaves_a_checkpoint_and_auto_is_enough_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stopped.ckpt");
    let request = request("stride,threshold=0.5");
    let whole = made(make(demo(), &request).unwrap());
    let auto = Checkpoint { path: path.clone(), every: Every::Auto, stop_after: None, keep: false };
    let asked = Request { checkpoint: Some(auto), ..request };
    let mut written = Vec::new();
    let stopped = generate(demo(), &asked, &mut |event| match event {
        Event::Step { index: 5, .. } => ControlFlow::Break(()),
        Event::Checkpoint { step, steps, .. } => {
            written.push((step, steps));
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Cancelled { step: 6, .. })));
    assert_eq!(written.last(), Some(&(6, STEPS)));
    assert!(made(make(demo(), &only(&path)).unwrap()) == whole);
}

#[test]
fn where_no_checkpoint_can_be_written_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let every = Every::Steps(NonZeroUsize::MIN);
    let checkpoint = Checkpoint { path: inside.join("a.ckpt"), every, stop_after: None, keep: false };
    let asked = Request { checkpoint: Some(checkpoint.clone()), ..request("pab") };
    let mut go_on = |event: Event| {
        if let Event::Step { index: 3, .. } = event {
            std::fs::remove_dir_all(&inside).unwrap();
        }
        ControlFlow::Continue(())
    };
    let video = generate(demo(), &asked, &mut go_on).unwrap();
    let warnings: Vec<&String> = video.report.warnings.iter().filter(|w| w.contains("no checkpoint after")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no checkpoint after step 4, the run goes on") && warnings[0].contains("a.ckpt"));
    assert!(made(video) == made(make(demo(), &request("pab")).unwrap()));
    // Before the first step it is an error: nothing is lost yet.
    assert!(make(demo(), &asked).err().unwrap().to_string().contains("a.ckpt"));
}

/// A method that reuses two of the first six steps.
const EAGER: &str = "stride,threshold=100,warmup_steps=3,reuse=corrected";

/// A checkpoint of the demo.
fn fixture() -> Forger {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("first.ckpt");
        stop_after(demo(), &request(EAGER), 6, &path);
        std::fs::read(path).unwrap()
    });
    Forger::of(bytes.clone())
}

/// Refused, the file named, and the file left as it is.
fn refused(pipeline: &Pipeline, request: &Request, parts: &[&str]) {
    let path = request.resume.as_ref().unwrap().path.clone();
    let before = std::fs::read(&path).unwrap();
    let message = match make(pipeline, request) {
        Ok(_) => panic!("{parts:?}: goes on"),
        Err(error) => error.to_string(),
    };
    assert!(message.contains("cats.ckpt"), "{message}");
    assert!(parts.iter().all(|part| message.contains(part)), "{message}: expected {parts:?}");
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn another_run_is_refused_with_both_sides_named() {
    let fixture = fixture();
    let path = fixture.write(&fixture.bytes);
    let with = |change: &dyn Fn(&mut Request), parts: &[&str]| {
        let mut request = only(&path);
        change(&mut request);
        refused(demo(), &request, parts);
    };
    with(&|r| r.seed = Some(8), &["was made for seed 3, this is 8"]);
    with(&|r| r.steps = Some(12), &["was made for steps 10, this is 12"]);
    with(&|r| r.size = Some(Size { width: 48, height: 32 }), &["was made for width 32, this is 48"]);
    with(&|r| r.frames = Some(9), &["was made for frames 5, this is 9"]);
    with(&|r| r.guidance = Some(1.0), &["was made for guidance", "this is 1.0"]);
    with(&|r| r.prompt = "a blue star".to_string(), &["a red circle", "this is \"a blue star\""]);
    let cache = |text: &str| Some(cache_argument(text).unwrap());
    with(&|r| r.cache = cache("pab"), &["with the cache method \"stride\", this is \"pab\""]);
    with(&|r| r.cache = cache(&EAGER.replace("100", "99")), &["was made for threshold 100.0, this is 99.0"]);
    // What agrees may be said.
    let agreed = Request { resume: resume(&path), ..request(EAGER) };
    assert!(make(demo(), &agreed).is_ok());

    // Another model; the same one elsewhere; other weights of it; a LoRA's weight.
    let tiny = tiny::pipeline();
    refused(&open(tiny.path()), &only(&path), &["was made by the model demo"]);
    let small = Request { size: Some(Size { width: 48, height: 32 }), frames: Some(9), ..request("pab") };
    let of_tiny = fixture.folder.path().join("tiny");
    std::fs::create_dir(&of_tiny).unwrap();
    let of_tiny = of_tiny.join("cats.ckpt");
    stop_after(&open(tiny.path()), &small, 4, &of_tiny);
    let moved = tiny::pipeline();
    assert!(make(&open(moved.path()), &only(&of_tiny)).is_ok());
    let weights = moved.path().join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    refused(&open(moved.path()), &only(&of_tiny), &["other weights of the Transformer: ", " of f32", ", here "]);

    // One is never written over another.
    let asked = Request { checkpoint: checkpoint(&path, 2), ..request("pab") };
    let message = make(demo(), &asked).err().unwrap().to_string();
    assert!(message.contains("holds 6 of 10 steps of an earlier run"), "{message}");
    let plain = fixture.folder.path().join("notes.txt");
    std::fs::write(&plain, "dear diary").unwrap();
    let asked = Request { checkpoint: checkpoint(&plain, 2), ..request("pab") };
    let message = make(demo(), &asked).err().unwrap().to_string();
    assert!(message.contains("notes.txt: is there already and no checkpoint"), "{message}");
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "dear diary");
}

#[test]
fn loras_and_formats_are_part_of_the_model() {
    let folder = tiny::pipeline();
    let [lora, path] = ["style.safetensors", "cats.ckpt"].map(|name| folder.path().join(name));
    let query = "transformer.blocks.0.attn1.to_q";
    let [rows, columns] = tiny::index()["transformer"]["blocks.0.attn1.to_q.weight"][..] else { panic!("no matrix") };
    let parts = [("lora_A", vec![2, columns]), ("lora_B", vec![rows, 2])];
    let part = |(name, shape): (&str, Vec<usize>)| {
        let values = navicache_engine::noise::randn(7, shape.iter().product());
        (format!("{query}.{name}.weight"), shape, values)
    };
    tiny::write(&lora, parts.into_iter().map(part));
    let open = |weight: Option<f64>, dtype| {
        let loras = weight.map(|weight| Lora { path: lora.clone(), weight, expert: None }).into_iter().collect();
        let options = LoadOptions { loras, dtype, ..LoadOptions::default() };
        Pipeline::open(folder.path().to_str().unwrap(), &options).unwrap()
    };
    let small = Request { size: Some(Size { width: 48, height: 32 }), ..request("none") };
    stop_after(&open(Some(0.5), DtypeChoice::Auto), &small, 3, &path);
    for weight in [None, Some(0.25)] {
        refused(&open(weight, DtypeChoice::Auto), &only(&path), &["other weights of the Transformer: "]);
    }
    refused(&open(Some(0.5), DtypeChoice::Bf16), &only(&path), &["kept as f32, here they are bf16"]);
    assert!(make(&open(Some(0.5), DtypeChoice::Auto), &only(&path)).is_ok());
}

#[test]
fn another_build_is_refused_unless_it_is_allowed() {
    let fixture = fixture();
    let kernels = format!("\"kernels\":\"{}\"", demo().machine().kernels);
    let path = fixture.edited("identity", &kernels, "\"kernels\":\"abacus\"");
    refused(
        demo(),
        &only(&path),
        &["was made by navicache", "abacus", "may differ in the last digits", "`allow_other_build` goes on"],
    );
    let allowed = Request { resume: Some(Resume { path, allow_other_build: true }), ..only(Path::new("")) };
    let video = make(demo(), &allowed).unwrap();
    let said = video.report.warnings.iter().any(|warning| warning.contains("abacus"));
    assert!(said, "the report says so: {:?}", video.report.warnings);
}

#[test]
fn damage_is_refused_by_name() {
    let fixture = fixture();
    let of = |path: PathBuf| only(&path);
    let (header, _) = fixture.parts();
    // Any byte, and any end.
    let length = fixture.bytes.len();
    for i in (0..8).chain((8..length).step_by(length / 150)).chain(length - 40..length) {
        let mut bytes = fixture.bytes.clone();
        bytes[i] ^= 1 << (i % 8);
        refused(demo(), &of(fixture.write(&bytes)), &[]);
    }
    for end in (0..length).step_by(length / 100).chain([length - 1]) {
        refused(demo(), &of(fixture.write(&fixture.bytes[..end])), &[]);
    }
    let mut longer = fixture.bytes.clone();
    longer.push(0);
    refused(demo(), &of(fixture.write(&longer)), &[]);
    let mut flipped = fixture.bytes.clone();
    flipped[length - 100] ^= 4;
    refused(demo(), &of(fixture.write(&flipped)), &["is damaged: its SHA-256 is "]);
    refused(demo(), &of(fixture.write(b"not a checkpoint")), &["is no whole checkpoint"]);

    // The same by somebody who knows how digests are made.
    refused(demo(), &of(fixture.edited("version", "1", "2")), &["is a checkpoint of version 2, this program reads 1"]);
    refused(demo(), &of(fixture.edited("format", "navicache", "other")), &["is no checkpoint of navicache"]);
    refused(demo(), &of(fixture.edited("step", "6", "7")), &["step 7 of 10: the state is that after 6 steps"]);
    refused(demo(), &of(fixture.edited("steps", "10", "five")), &["steps: expected a number, found \"five\""]);
    refused(demo(), &of(fixture.edited("state", "\"said\"", "\"unsaid\"")), &["state: unknown field"]);
    refused(demo(), &of(fixture.edited("state", "{\"forced\":", "{\"forgotten\":")), &["state: unknown variant"]);
    let decided = fixture.edited("state", "\"decision\":{\"reuse\":\"corrected\"}", "\"decision\":\"compute\"");
    refused(demo(), &of(decided), &["the decision about Step of step", "Compute was saved, Reuse(Corrected) here"]);
    refused(demo(), &of(fixture.edited("state", "\"branches\":[0.", "\"branches\":[-0.")), &["expected seconds"]);
    refused(demo(), &of(fixture.edited("state", "\"latents\":\"latents\"", "\"latents\":\"stars\"")), &["stars"]);
    refused(demo(), &of(fixture.edited("state", "\"step\":5", "\"step\":50")), &["50"]);
    refused(demo(), &of(fixture.edited("identity", "\"seed\":3", "\"seed\":\"x\"")), &["request: "]);
    refused(demo(), &of(fixture.edited("identity", "\"request\"", "\"wish\"")), &["identity: unknown field"]);
    refused(demo(), &of(fixture.edited("warnings", "[", "{")), &["warnings: "]);

    let latents = header["latents"]["data_offsets"][0].as_u64().unwrap() as usize;
    let nan = fixture.forged(|_, data| data[latents..latents + 4].copy_from_slice(&f32::NAN.to_le_bytes()));
    refused(demo(), &of(nan), &["latents: expected finite numbers, found NaN or infinity"]);
    let renamed = |from: &str, to: &str| {
        let (from, to) = (from.to_string(), to.to_string());
        move |header: &mut Value, _: &mut Vec<u8>| {
            let entry = header.as_object_mut().unwrap().remove(&from).unwrap();
            header[to] = entry;
        }
    };
    let missing = fixture.forged(renamed("latents", "stars"));
    refused(demo(), &of(missing), &["latents: there is no such tensor"]);
    let solver = header.as_object().unwrap().keys().find(|name| name.starts_with("solver.")).unwrap().clone();
    let newest = "\"solver.anchor.0.velocity\"";
    refused(demo(), &of(fixture.edited("state", newest, "\"latents\"")), &["velocity: the state has no such tensor"]);
    let reshaped = fixture.forged(|header, _| header[solver.as_str()]["shape"] = json!([16 * 2 * 4 * 4]));
    refused(demo(), &of(reshaped), &["expected the shape of the latents, [1, 16, 2, 4, 4], found [512]"]);
    let reshaped = fixture.forged(|header, _| header["latents"]["shape"] = json!([1, 16, 2, 16, 1]));
    refused(demo(), &of(reshaped), &["[1, 16, 2, 4, 4]"]);
    let text = header.as_object().unwrap().keys().find(|name| name.starts_with("text.1.")).unwrap().as_str();
    let few = fixture.forged(renamed(text, "text.2.extra"));
    refused(demo(), &of(few), &["text.1.", "there is no such tensor"]);
    let shape: Vec<u64> = serde_json::from_value(header[text]["shape"].clone()).unwrap();
    let turned = fixture.forged(|header, _| header[text]["shape"] = json!([shape[0], shape[2], shape[1]]));
    refused(demo(), &of(turned), &["text.1.", "expected F32 of [1, 32, "]);
    let undigested = fixture.forged(|header, _| drop(header.as_object_mut().unwrap().remove("sha256")));
    refused(demo(), &of(undigested), &[]);
}

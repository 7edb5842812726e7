//! Metrics against their definitions in Python, on clips that are drawn again here; files and folders of videos.

#[path = "../../engine/tests/tiny/mod.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use navicache_engine::noise;
use navicache_metrics::{
    Comparison, Convention, Frames, LPIPS, Lpips, MS_SSIM, Meter, Metric, PSNR, SSIM, save_curves,
};
use tempfile::TempDir;

/// What `tools/golden/metrics.py` found.
#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    width: usize,
    height: usize,
    frames: usize,
    seed: Option<u64>,
    other: Other,
    psnr: Vec<f64>,
    psnr_of_video: f64,
    ssim: Vec<f64>,
    ms_ssim: Option<Vec<f64>>,
    lpips: Option<Vec<f64>>,
    motion_kept: Option<f64>,
    temporal_flickering: [f64; 2],
}

/// What the video is, next to its reference.
#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Other {
    Equal,
    Black,
    /// By a pixel to the right; the last column comes first.
    Shifted,
    /// Another, of this seed.
    Drawn(u64),
    /// The reference and noise: seed, grey levels.
    Noise((u64, f32)),
}

impl Golden {
    fn all() -> Vec<Golden> {
        serde_json::from_str(include_str!("golden/metrics.json")).unwrap()
    }

    fn clips(&self) -> (Vec<u8>, Vec<u8>) {
        let n = self.frames * self.height * self.width * 3;
        let picture = |seed| noise::randn(seed, n).iter().map(|v| (128.0 + 50.0 * v) as u8).collect();
        let reference: Vec<u8> = self.seed.map_or(vec![0; n], picture);
        let shifted = |row: &[u8]| [&row[row.len() - 3..], &row[..row.len() - 3]].concat();
        let other = match self.other {
            Other::Equal => reference.clone(),
            Other::Black => vec![0; n],
            Other::Shifted => reference.chunks_exact(3 * self.width).flat_map(shifted).collect(),
            Other::Drawn(seed) => picture(seed),
            Other::Noise((seed, amount)) => {
                let noise = noise::randn(seed, n);
                reference.iter().zip(noise).map(|(&r, v)| (r as f32 + amount * v) as u8).collect()
            }
        };
        (reference, other)
    }

    fn compare(&self, meter: &Meter) -> Comparison {
        let (reference, other) = self.clips();
        let frames = |pixels| Frames::new(pixels, self.width, self.height).unwrap();
        meter.compare(frames(&reference), frames(&other)).unwrap()
    }
}

const CONVOLUTIONS: [(usize, [usize; 4]); 5] =
    [(0, [64, 3, 11, 11]), (3, [192, 64, 5, 5]), (6, [384, 192, 3, 3]), (8, [256, 384, 3, 3]), (10, [256, 256, 3, 3])];

/// Weights of AlexNet under the names of torchvision, and of the linear layers under those of the metric's authors.
fn weights() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let tensor = |name: String, shape: &[usize]| {
        let mut values = tiny::values("lpips", &name, shape);
        if name.starts_with("lin") {
            values.iter_mut().for_each(|value| *value = value.abs());
        }
        (name, shape.to_vec(), values)
    };
    let mut tensors = Vec::new();
    for (layer, (at, shape)) in CONVOLUTIONS.into_iter().enumerate() {
        tensors.push(tensor(format!("features.{at}.weight"), &shape));
        tensors.push(tensor(format!("features.{at}.bias"), &shape[..1]));
        tensors.push(tensor(format!("lin{layer}.model.1.weight"), &[1, shape[0], 1, 1]));
    }
    tensors
}

/// AlexNet alone as torchvision has it, in a folder; and the published kind of file with the linear layers.
fn two_files() -> (TempDir, [PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let alexnet = folder.path().join("alexnet.safetensors");
    let classifier = ("classifier.6.bias".to_string(), vec![10], vec![0.0; 10]);
    let features = weights().into_iter().filter(|(name, ..)| name.starts_with("features"));
    tiny::write(&alexnet, features.chain([classifier]));
    let linear = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lpips-lin.pth");
    (folder, [alexnet, linear])
}

#[test]
fn the_definitions_of_the_reference_scripts() {
    let (_folder, files) = two_files();
    let lpips = Lpips::open(&files).unwrap();
    let mut largest = 0f64;
    for golden in Golden::all() {
        let meter = Meter { lpips: golden.lpips.is_some().then(|| lpips.clone()), ..Meter::default() };
        let found = golden.compare(&meter);
        let check = |what: &str, found: &[f64], expected: &[f64], tolerance: f64| {
            let close =
                found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance);
            assert!(close, "{}: {what} {found:?}, expected {expected:?}", golden.name);
        };
        let frames = |metric: &Metric| found.curve(metric).map(|curve| curve.frames.clone()).unwrap_or_default();
        check("psnr", &frames(&PSNR), &golden.psnr, 1e-9);
        check("psnr of the video", &[found.psnr_of_video], &[golden.psnr_of_video], 1e-9);
        check("ssim", &frames(&SSIM), &golden.ssim, 1e-9);
        check("ms-ssim", &frames(&MS_SSIM), &golden.ms_ssim.clone().unwrap_or_default(), 1e-9);
        check("lpips", &frames(&LPIPS), &golden.lpips.clone().unwrap_or_default(), 1e-5);
        let kept = |kept: Option<f64>| kept.map_or(Vec::new(), |kept| vec![kept]);
        check("motion kept", &kept(found.motion_kept), &kept(golden.motion_kept), 1e-9);
        check("flickering", &found.temporal_flickering, &golden.temporal_flickering, 1e-9);
        let (here, there) = (frames(&LPIPS), golden.lpips.unwrap_or_default());
        largest = here.iter().zip(&there).fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    println!("largest difference of LPIPS: {largest:.1e}");
}

#[test]
fn weights_of_lpips_in_one_file() {
    let (folder, files) = two_files();
    let slice = |at: usize| 1 + CONVOLUTIONS.iter().position(|(index, _)| *index == at).unwrap();
    let saved = |name: &str| match name.strip_prefix("features.").and_then(|rest| rest.split_once('.')) {
        Some((at, leaf)) => format!("net.slice{}.{at}.{leaf}", slice(at.parse().unwrap())),
        None => name.to_string(),
    };
    let whole = folder.path().join("whole.safetensors");
    let twice = weights().into_iter().filter(|(name, ..)| name.starts_with("lin"));
    let twice = twice.map(|(name, shape, values)| (name.replacen("lin", "lins.", 1), shape, values));
    let once = weights().into_iter().map(|(name, shape, values)| (saved(&name), shape, values));
    tiny::write(&whole, once.chain(twice));
    let golden = Golden::all().into_iter().find(|golden| golden.name == "random").unwrap();
    let measure = |files: &[PathBuf]| {
        golden.compare(&Meter { lpips: Some(Lpips::open(files).unwrap()), ..Meter::default() }).curves[LPIPS.key]
            .clone()
    };
    assert_eq!(measure(std::slice::from_ref(&whole)), measure(&files));

    let refused = |files: &[PathBuf]| Lpips::open(files).unwrap_err().to_string();
    let [alexnet, linear] = files;
    let missing = refused(std::slice::from_ref(&alexnet));
    assert!(missing.contains("lin0.model.1.weight") && missing.contains("weights/v0.1/alex.pth"), "{missing}");
    assert!(refused(std::slice::from_ref(&linear)).contains("features.0.weight"));
    assert!(refused(&[whole.clone(), linear]).contains("there twice"));
    assert!(refused(&[folder.path().join("none.pth")]).contains("none.pth"));
    let vgg = folder.path().join("vgg.safetensors");
    tiny::write(&vgg, [("features.0.weight".to_string(), vec![64, 3, 3, 3], vec![0.0; 64 * 27])].into_iter());
    assert!(refused(&[vgg]).contains("[64, 3, 11, 11], found [64, 3, 3, 3]"));

    let nan = folder.path().join("nan.safetensors");
    let spoiled = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| {
        let value = if name == "lin4.model.1.weight" { f32::NAN } else { values[0] };
        (name, shape, vec![value; values.len()])
    };
    tiny::write(&nan, weights().into_iter().map(spoiled));
    let (reference, _) = golden.clips();
    let frames = Frames::new(&reference, golden.width, golden.height).unwrap();
    let refused = |file: PathBuf, frames| {
        let meter = Meter { lpips: Some(Lpips::open(&[file]).unwrap()), ..Meter::default() };
        meter.compare(frames, frames).unwrap_err()
    };
    assert!(refused(nan, frames).to_string().contains("NaN"));
    let small = Frames::new(&reference[..30 * 31 * 3], 30, 31).unwrap();
    assert!(refused(whole, small).to_string().contains("31x31"));
}

#[test]
fn conventions() {
    let golden = Golden::all().into_iter().find(|golden| golden.name == "noisy").unwrap();
    let compare = |convention| golden.compare(&Meter { convention, lpips: None });
    let [raw, videosys, easycache] = [Convention::Raw, Convention::VideoSys, Convention::EasyCache].map(compare);
    assert_eq!(raw.scores.get(&PSNR), Some(golden.psnr.iter().sum::<f64>() / 3.0));
    assert_eq!(videosys.scores, raw.scores);
    assert_eq!(easycache.scores.get(&PSNR), Some(easycache.psnr_of_video));
    assert_eq!(easycache.scores.get(&SSIM), raw.scores.get(&SSIM));
    assert_ne!(easycache.scores.get(&PSNR), raw.scores.get(&PSNR));

    // A reference of more frames, and larger ones: cut by VideoSys, refused by the others.
    let (pixels, _) = golden.clips();
    let reference = Frames::new(&pixels, golden.width, golden.height).unwrap();
    let middle = |row: &[u8]| row[3 * 4..3 * 16].to_vec();
    let video: Vec<u8> = pixels.chunks_exact(3 * 20).take(14).skip(1).take(12).flat_map(middle).collect();
    let video = Frames::new(&video, 12, 12).unwrap();
    let cut = Meter { convention: Convention::VideoSys, lpips: None }.compare(reference, video).unwrap();
    assert_eq!((cut.scores.get(&PSNR), cut.cut_from.as_deref()), (Some(100.0), Some("3 frames of 20x14")));
    for convention in [Convention::Raw, Convention::EasyCache] {
        let refused = Meter { convention, lpips: None }.compare(reference, video).unwrap_err().to_string();
        assert!(refused.contains("1 frames of 12x12") && refused.contains("3 frames of 20x14"), "{refused}");
    }
    let longer = Meter { convention: Convention::VideoSys, lpips: None }.compare(video, reference);
    assert!(longer.is_err(), "a reference cannot be enlarged");
}

#[test]
fn curves_as_a_table() {
    let golden = Golden::all().into_iter().find(|golden| golden.name == "noisy").unwrap();
    let compared = golden.compare(&Meter::default());
    let folder = tempfile::tempdir().unwrap();
    let saved = |videos: &[(Option<&str>, &Comparison)]| {
        let path = folder.path().join("curves.csv");
        save_curves(&path, videos).unwrap();
        std::fs::read_to_string(path).unwrap().lines().map(str::to_string).collect::<Vec<_>>()
    };
    let lines = saved(&[(None, &compared)]);
    assert_eq!(lines[0], "frame,psnr,ssim,ms_ssim,lpips,motion,reference_motion");
    let fields = |line: &str| line.split(',').map(str::to_string).collect::<Vec<_>>();
    let first = fields(&lines[1]);
    assert_eq!((first[0].as_str(), first[1].parse().ok()), ("0", Some(compared.curve(&PSNR).unwrap().frames[0])));
    assert_eq!(first[3..], ["", "", "", ""], "small frames, no weights, and nothing before the first frame");
    let last = fields(&lines[3]);
    assert_eq!(last[5].parse().ok(), Some(compared.motion[1][1]));
    let lines = saved(&[(Some("a.mp4"), &compared), (Some("b.mp4"), &compared)]);
    assert_eq!(lines.len(), 7);
    assert!(lines[0].starts_with("video,frame,psnr") && lines[6].starts_with("b.mp4,2,"));
}

//! The embedded demo model: a small Wan2.1 pipeline trained on procedural clips by `tools/demo/train.py`, so that the
//! program shows what it does before anything is downloaded.

/// What it is called on the command line.
pub(crate) const NAME: &str = "demo";

macro_rules! files {
    ($($path:literal),* $(,)?) => { &[$(($path, include_bytes!(concat!("../demo/", $path)))),*] };
}

/// Path inside the pipeline's folder, and content.
pub(crate) const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "navicache.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

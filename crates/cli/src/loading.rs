//! Options of which model runs, and how it is loaded.

use std::path::PathBuf;

use clap::builder::ArgPredicate;
use navicache_engine::{DeviceChoice, DtypeChoice, Files, LoadOptions, Lora, Pipeline, Result, use_threads};

use crate::listed;
use crate::values::bytes;

/// The model that needs no files.
pub const BUILT_IN: &str = "demo";

/// Which model, and how it is loaded.
#[derive(Clone, clap::Args)]
pub struct Loading {
    /// A name that `navicache models` lists, or a folder or file of weights
    ///
    /// Diffusers, the authors' repository, ComfyUI's files, GGUF: weights are recognised by what is in them.
    #[arg(short, long, value_name = "NAME|PATH", value_parser = listed::model(), hide_possible_values = true, default_value = BUILT_IN, default_value_ifs = [
        ("transformer", ArgPredicate::IsPresent, Some("")),
        ("text_encoder", ArgPredicate::IsPresent, Some("")),
        ("vae", ArgPredicate::IsPresent, Some("")),
    ])]
    pub model: String,

    /// Weights of the transformer: .safetensors, .gguf, .pth
    #[arg(long, value_name = "FILE")]
    pub transformer: Option<PathBuf>,

    /// Weights of the second transformer, for the steps of low noise (Wan2.2 A14B)
    #[arg(long, value_name = "FILE")]
    pub transformer_2: Option<PathBuf>,

    /// Weights of the text encoder
    #[arg(long, value_name = "FILE")]
    pub text_encoder: Option<PathBuf>,

    /// Weights of the second text encoder (HunyuanVideo's CLIP)
    #[arg(long, value_name = "FILE")]
    pub text_encoder_2: Option<PathBuf>,

    /// Weights of the VAE
    #[arg(long, value_name = "FILE")]
    pub vae: Option<PathBuf>,

    /// Weights of the image encoder (Wan2.1 I2V)
    #[arg(long, value_name = "FILE")]
    pub image_encoder: Option<PathBuf>,

    /// tokenizer.json or spiece.model, where no other file has it
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// tokenizer.json or spiece.model of the second text encoder
    #[arg(long, value_name = "FILE")]
    pub tokenizer_2: Option<PathBuf>,

    /// LoRA to add to the transformer, and how much of it; may be given again. Of two transformers (Wan2.2 A14B), to
    /// the one that its name says, or :high or :low after it; else to both
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    pub lora: Vec<Lora>,

    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true,
          value_parser = listed::one_of::<DeviceChoice>(|| vec!["auto", "cpu", "cuda", "metal"]))]
    pub device: DeviceChoice,

    /// Format that weights are kept in: auto, f32, bf16 or f16; quantised and 8-bit weights stay as they are
    #[arg(long, value_name = "NAME", default_value = "auto", hide_possible_values = true,
          value_parser = listed::one_of::<DtypeChoice>(|| vec!["auto", "f32", "bf16", "f16"]))]
    pub dtype: DtypeChoice,

    /// Threads to compute with; left out, those that the machine has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Most memory to use, as in 12GiB; left out, what is free. Larger weights are streamed from disk, and decoding is
    /// done in tiles
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
}

impl Loading {
    /// Takes as many threads as were asked for.
    pub fn start_threads(&self) -> Result<()> {
        use_threads(self.threads.map(usize::from))
    }

    /// Opens the model.
    pub fn open(&self) -> Result<Pipeline> {
        self.start_threads()?;
        Pipeline::open(&self.model, &self.options())
    }

    /// The same as the engine takes it.
    pub fn options(&self) -> LoadOptions {
        let files = Files {
            transformer: self.transformer.clone(),
            transformer_2: self.transformer_2.clone(),
            text_encoder: self.text_encoder.clone(),
            text_encoder_2: self.text_encoder_2.clone(),
            vae: self.vae.clone(),
            image_encoder: self.image_encoder.clone(),
            tokenizer: self.tokenizer.clone(),
            tokenizer_2: self.tokenizer_2.clone(),
        };
        LoadOptions { device: self.device, dtype: self.dtype, files, loras: self.lora.clone(), memory: self.memory }
    }
}

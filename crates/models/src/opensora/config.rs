//! Configurations, as the published `config.json` files have them. A field that is missing has the published model's
//! value.

use serde::Deserialize;

use crate::keys::{Configuration, Keys, OF_TRANSFORMERS, Rule};
use crate::weights::{count, covers, dims};
use crate::{Error, Result, Source};

/// `config.json` of the transformer.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    model_type: String,
    /// Pairs of blocks, one with attention within frames and one with attention across them.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Latents to a token, along time, height and width.
    pub patch_size: [usize; 3],
    /// Channels of the latents.
    pub in_channels: usize,
    /// Width of the text encoder's output.
    pub caption_channels: usize,
    /// Tokens of the learned text that stands for none.
    pub model_max_length: usize,
    /// Width of the feed-forward networks over that of the stream.
    pub mlp_ratio: f64,
    qk_norm: bool,
    /// Whether there are as many channels of output again, which sampling has no use for.
    pub pred_sigma: bool,
    /// Height and width of a picture for which places count as they are, in pixels.
    pub input_sq_size: usize,
    skip_y_embedder: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            model_type: "STDiT3".to_string(),
            depth: 28,
            hidden_size: 1152,
            num_heads: 16,
            patch_size: [1, 2, 2],
            in_channels: 4,
            caption_channels: 4096,
            model_max_length: 300,
            mlp_ratio: 4.0,
            qk_norm: true,
            pred_sigma: true,
            input_sq_size: 512,
            skip_y_embedder: false,
        }
    }
}

impl TransformerConfig {
    /// The configuration that weights belong to, by their shapes. `input_sq_size`, of which none speaks, is the
    /// published one.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let block = "spatial_blocks.0";
        let [hidden_size, in_channels, pf, ph, pw] = dims(source, "x_embedder.proj.weight")?;
        let [model_max_length, caption_channels] = dims(source, "y_embedder.y_embedding")?;
        let [head_dim] = dims(source, &format!("{block}.attn.q_norm.weight"))?;
        let [mlp_dim, _] = dims(source, &format!("{block}.mlp.fc1.weight"))?;
        let [outputs, _] = dims(source, "final_layer.linear.weight")?;
        Ok(TransformerConfig {
            depth: count(source, |i| format!("spatial_blocks.{i}.attn.qkv.weight")),
            hidden_size,
            num_heads: hidden_size / head_dim.max(1),
            patch_size: [pf, ph, pw],
            in_channels,
            caption_channels,
            model_max_length,
            mlp_ratio: mlp_dim as f64 / hidden_size.max(1) as f64,
            pred_sigma: outputs != in_channels * pf * ph * pw,
            ..Default::default()
        })
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Width of the feed-forward networks.
    pub fn mlp_dim(&self) -> usize {
        (self.hidden_size as f64 * self.mlp_ratio) as usize
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        if self.pred_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "config.json of the transformer", field, found, expected: expected.to_string() })
        };
        if self.model_type != "STDiT3" {
            return refuse("model_type", self.model_type.clone(), "STDiT3");
        }
        if !self.qk_norm {
            return refuse("qk_norm", "false".to_string(), "true");
        }
        if self.skip_y_embedder {
            return refuse("skip_y_embedder", "true".to_string(), "false: the text goes through the embedder");
        }
        let sizes = [
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("hidden_size", self.hidden_size),
            ("in_channels", self.in_channels),
            ("caption_channels", self.caption_channels),
            ("model_max_length", self.model_max_length),
            ("input_sq_size", self.input_sq_size),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "0".to_string(), "more than 0");
        }
        if self.patch_size[0] != 1 || self.patch_size.contains(&0) {
            let expected = "three numbers above 0, the first 1: a token is of one frame";
            return refuse("patch_size", format!("{:?}", self.patch_size), expected);
        }
        // Channels of a head turn in pairs; positions are encoded in four parts.
        if !self.hidden_size.is_multiple_of(self.num_heads.saturating_mul(2)) || !self.hidden_size.is_multiple_of(4) {
            let expected = format!("a multiple of 4 and of twice num_heads, {}", self.num_heads);
            return refuse("hidden_size", self.hidden_size.to_string(), &expected);
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0) {
            return refuse("mlp_ratio", self.mlp_ratio.to_string(), "more than 0, at most 64");
        }
        Ok(())
    }
}

/// `config.json` of the autoencoder.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    model_type: String,
    /// Frames that are encoded, and decoded, apart from all others.
    pub micro_frame_size: usize,
    cal_loss: bool,
    vae_2d: Kind,
    /// The autoencoder over time.
    pub vae_temporal: TimeVaeConfig,
    /// The autoencoder of single frames. Published files leave it out.
    pub vae_2d_config: FrameVaeConfig,
}

/// What is said of the autoencoder of single frames in the published file.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl Default for Kind {
    fn default() -> Self {
        Kind { kind: "VideoAutoencoderKL".to_string() }
    }
}

/// The autoencoder over time.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TimeVaeConfig {
    #[serde(rename = "type")]
    kind: String,
    /// Channels of what it decodes to: the latents of single frames.
    pub in_out_channels: usize,
    /// Channels inside, between its first convolution and the rest.
    pub latent_embed_dim: usize,
    /// Channels of the latents.
    pub embed_dim: usize,
    /// Width at full length.
    pub filters: usize,
    /// Residual blocks a level.
    pub num_res_blocks: usize,
    /// Factors of the width, from full length down.
    pub channel_multipliers: Vec<usize>,
    /// After which of the levels, the last left out, time is halved.
    pub temporal_downsample: Vec<bool>,
    /// Groups of channels that are normalised together.
    pub num_groups: usize,
    activation_fn: String,
}

impl Default for TimeVaeConfig {
    fn default() -> Self {
        TimeVaeConfig {
            kind: "VAE_Temporal_SD".to_string(),
            in_out_channels: 4,
            latent_embed_dim: 4,
            embed_dim: 4,
            filters: 128,
            num_res_blocks: 4,
            channel_multipliers: vec![1, 2, 2, 4],
            temporal_downsample: vec![false, true, true],
            num_groups: 32,
            activation_fn: "swish".to_string(),
        }
    }
}

/// The autoencoder of single frames.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct FrameVaeConfig {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Colours.
    pub out_channels: usize,
    /// Widths, from full resolution down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of channels that are normalised together.
    pub norm_num_groups: usize,
    act_fn: String,
}

impl Default for FrameVaeConfig {
    fn default() -> Self {
        FrameVaeConfig {
            latent_channels: 4,
            out_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            act_fn: "silu".to_string(),
        }
    }
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            model_type: "VideoAutoencoderPipeline".to_string(),
            micro_frame_size: 17,
            cal_loss: false,
            vae_2d: Kind::default(),
            vae_temporal: TimeVaeConfig::default(),
            vae_2d_config: FrameVaeConfig::default(),
        }
    }
}

impl VaeConfig {
    /// Frames to a latent frame. A chunk whose frames are no multiple has fewer for its first latent frame.
    pub fn time_factor(&self) -> usize {
        1 << self.vae_temporal.temporal_downsample.iter().filter(|&&halved| halved).count()
    }

    /// Pixels to a latent, along height and width.
    pub fn space_factor(&self) -> usize {
        1 << self.vae_2d_config.block_out_channels.len().saturating_sub(1)
    }

    /// Latent frames of a chunk.
    pub fn micro_latent_frames(&self) -> usize {
        self.micro_frame_size.div_ceil(self.time_factor())
    }

    /// Latent frames that so many frames are encoded to.
    pub fn latent_frames(&self, frames: usize) -> usize {
        let rest = (frames % self.micro_frame_size).div_ceil(self.time_factor());
        frames / self.micro_frame_size * self.micro_latent_frames() + rest
    }

    /// The most frames that so many latent frames stand for.
    pub fn frames_of(&self, latent_frames: usize) -> usize {
        let micro = self.micro_latent_frames();
        latent_frames / micro * self.micro_frame_size + latent_frames % micro * self.time_factor()
    }

    /// About the most bytes that decoding latents takes beside the weights: a chunk of all frames at the size of the
    /// latents, or a frame after its last doubling.
    pub fn decode_bytes(&self, rows: usize, columns: usize, latent_frames: usize) -> u64 {
        const F32: usize = 4;
        const COPIES: usize = 3;
        let frames = latent_frames.min(self.micro_latent_frames()) * self.time_factor();
        let over_time = 2 * self.vae_temporal.widths().iter().min().copied().unwrap_or(1) * frames * rows * columns;
        let widths = &self.vae_2d_config.block_out_channels;
        let widest = widths.get(1).or(widths.first()).copied().unwrap_or(1);
        let in_frame = widest * rows * columns * self.space_factor() * self.space_factor();
        (over_time.max(in_frame) * COPIES * F32) as u64
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "config.json of the VAE", field, found, expected: expected.to_string() })
        };
        let (time, frame) = (&self.vae_temporal, &self.vae_2d_config);
        let names = [
            ("model_type", &self.model_type, ["VideoAutoencoderPipeline"].as_slice()),
            ("vae_2d.type", &self.vae_2d.kind, &["VideoAutoencoderKL"]),
            ("vae_temporal.type", &time.kind, &["VAE_Temporal_SD", "VAE_Temporal"]),
            ("vae_temporal.activation_fn", &time.activation_fn, &["swish"]),
            ("vae_2d_config.act_fn", &frame.act_fn, &["silu"]),
        ];
        if let Some((field, found, known)) = names.into_iter().find(|(_, name, known)| !known.contains(&name.as_str()))
        {
            return refuse(field, found.clone(), &known.join(" or "));
        }
        if self.cal_loss {
            return refuse("cal_loss", "true".to_string(), "false: latents are scaled");
        }
        if !(1..=1024).contains(&self.micro_frame_size) {
            return refuse("micro_frame_size", self.micro_frame_size.to_string(), "1 to 1024");
        }
        let levels = time.channel_multipliers.len();
        if levels == 0 || levels > 8 || time.temporal_downsample.len() + 1 != levels {
            let found = format!("{:?}", time.temporal_downsample);
            return refuse("vae_temporal.temporal_downsample", found, "one fewer than channel_multipliers, at most 7");
        }
        let divides = |widths: &[usize], groups: usize| {
            groups > 0 && widths.iter().all(|&width| width > 0 && width.is_multiple_of(groups))
        };
        let widths = time.widths();
        if !divides(&widths, time.num_groups) {
            let expected = format!("widths that are multiples of num_groups, {}", time.num_groups);
            return refuse("vae_temporal.channel_multipliers", format!("{widths:?}"), &expected);
        }
        let widths = &frame.block_out_channels;
        if !(1..=8).contains(&widths.len()) || !divides(widths, frame.norm_num_groups) {
            let expected = format!("1 to 8 multiples of norm_num_groups, {}", frame.norm_num_groups);
            return refuse("vae_2d_config.block_out_channels", format!("{widths:?}"), &expected);
        }
        if frame.out_channels != 3 {
            return refuse("vae_2d_config.out_channels", frame.out_channels.to_string(), "3");
        }
        if frame.latent_channels == 0 || time.in_out_channels != frame.latent_channels {
            let expected = format!("vae_2d_config.latent_channels, {}, more than 0", frame.latent_channels);
            return refuse("vae_temporal.in_out_channels", time.in_out_channels.to_string(), &expected);
        }
        let sizes = [
            ("vae_temporal.latent_embed_dim", time.latent_embed_dim),
            ("vae_temporal.embed_dim", time.embed_dim),
            ("vae_temporal.num_res_blocks", time.num_res_blocks),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "0".to_string(), "more than 0");
        }
        Ok(())
    }
}

impl TimeVaeConfig {
    /// Widths of the levels, from full length down.
    pub(super) fn widths(&self) -> Vec<usize> {
        self.channel_multipliers.iter().map(|factor| self.filters.saturating_mul(*factor)).collect()
    }
}

/// Keys of `STDiT3Config`.
const TRANSFORMER_KEYS: Keys = &[
    (&["model_type", "depth", "hidden_size", "num_heads", "patch_size", "in_channels", "caption_channels"], Rule::Read),
    (&["model_max_length", "mlp_ratio", "qk_norm", "pred_sigma", "input_sq_size", "skip_y_embedder"], Rule::Read),
    (&["class_dropout_prob", "drop_path", "freeze_y_embedder", "only_train_temporal"], Rule::Any), // of training
    (&["enable_flash_attn", "enable_layernorm_kernel", "enable_sequence_parallelism"], Rule::Any), // of speed
    (&["input_size"], Rule::Any), // what it was trained on last
];

impl Configuration for TransformerConfig {
    const NAMED_BY: &'static str = "model_type";
    const KEYS: &'static [Keys] = &[TRANSFORMER_KEYS, OF_TRANSFORMERS];

    fn fits(&self, source: &dyn Source) -> bool {
        dims::<5>(source, "x_embedder.proj.weight").is_ok_and(|[dim, ..]| dim == self.hidden_size)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        covers("config.json of the transformer", "depth", self.depth, Self::from_weights(source)?.depth)
    }
}

/// Keys of `VideoAutoencoderPipelineConfig`.
const VAE_KEYS: Keys = &[
    (&["model_type", "micro_frame_size", "cal_loss"], Rule::Read),
    (&["scale", "shift"], Rule::Any),  // weights have them
    (&["freeze_vae_2d"], Rule::Any),   // of training
    (&["from_pretrained"], Rule::Any), // where weights came from before these
    (
        &["vae_2d"],
        Rule::Object(&[
            (&["type"], Rule::Read),
            (&["from_pretrained", "subfolder", "cache_dir", "local_files_only"], Rule::Any), // the same
            (&["micro_batch_size"], Rule::Any), // frames at a time, each on its own
            (&["scaling_factor", "split"], Rule::Any),
        ]),
    ),
    (
        &["vae_temporal"],
        Rule::Object(&[
            (&["type", "in_out_channels", "latent_embed_dim", "embed_dim", "filters", "num_res_blocks"], Rule::Read),
            (&["channel_multipliers", "temporal_downsample", "num_groups", "activation_fn"], Rule::Read),
            (&["from_pretrained"], Rule::Any),
        ]),
    ),
    (
        &["vae_2d_config"],
        Rule::Object(&[
            (&["latent_channels", "out_channels", "block_out_channels", "layers_per_block"], Rule::Read),
            (&["norm_num_groups", "act_fn"], Rule::Read),
        ]),
    ),
];

impl Configuration for VaeConfig {
    const NAMED_BY: &'static str = "model_type";
    const KEYS: &'static [Keys] = &[VAE_KEYS, OF_TRANSFORMERS];

    /// No shape tells one from another.
    fn fits(&self, _: &dyn Source) -> bool {
        true
    }

    fn agree(&self, _: &dyn Source) -> Result<()> {
        self.check()
    }
}

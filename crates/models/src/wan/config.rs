//! Configurations, as the published `config.json` files have them. A field that is missing has the published model's
//! value.

use serde::Deserialize;

use crate::keys::{Configuration, Keys, OF_DIFFUSERS, Rule};
use crate::weights::{count, covers, dims};
use crate::{Error, Result, Source};

/// `transformer/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    /// Latents to a token, along time, height and width.
    pub patch_size: [usize; 3],
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the velocity.
    pub out_channels: usize,
    /// Width of the text encoder's output.
    pub text_dim: usize,
    /// Width of the timestep's sinusoid.
    pub freq_dim: usize,
    /// Width of the feed-forward network.
    pub ffn_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Whether the cross-attention's input is normalised.
    pub cross_attn_norm: bool,
    qk_norm: Option<String>,
    /// Of the norms.
    pub eps: f64,
    /// Width of the image encoder's output; `None`: the model takes no picture.
    pub image_dim: Option<usize>,
    added_kv_proj_dim: Option<usize>,
    /// Positions along an axis.
    pub rope_max_seq_len: usize,
    pos_embed_seq_len: Option<usize>,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: 16,
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some("rms_norm_across_heads".to_string()),
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
        }
    }
}

/// Channels of a head in all published models; no weight says so.
const HEAD_DIM: usize = 128;
/// The same of the small models that people make for tests, whose width is no multiple of that.
const SMALL_HEAD_DIM: usize = 32;
/// Most positions along an axis, for each of which there is a row of a table; the published models have 1024.
const POSITIONS_MAX: usize = 1 << 16;

impl TransformerConfig {
    /// The configuration that weights belong to, by their shapes. `like`: a configuration of the same width, for what
    /// no shape says, the number of heads first; without, heads have 128 channels as in all published models, or
    /// `SMALL_HEAD_DIM` where the width is that of none.
    pub fn from_weights(source: &dyn Source, like: Option<&TransformerConfig>) -> Result<Self> {
        let [dim, in_channels, pf, ph, pw] = dims(source, "patch_embedding.weight")?;
        let [_, text_dim] = dims(source, "condition_embedder.text_embedder.linear_1.weight")?;
        let [_, freq_dim] = dims(source, "condition_embedder.time_embedder.linear_1.weight")?;
        let [ffn_dim, _] = dims(source, "blocks.0.ffn.net.0.proj.weight")?;
        let [rows, _] = dims(source, "proj_out.weight")?;
        let image_dim = source.shape("condition_embedder.image_embedder.norm1.weight").and_then(|s| s.first().copied());
        let positions = source.shape("condition_embedder.image_embedder.pos_embed");
        let like = like.filter(|like| like.dim() == dim).cloned().unwrap_or_default();
        let head_dim = match dim {
            _ if like.dim() == dim => like.attention_head_dim,
            _ if dim.is_multiple_of(HEAD_DIM) => HEAD_DIM,
            _ => SMALL_HEAD_DIM,
        };
        if !dim.is_multiple_of(head_dim) || dim == 0 {
            return Err(Error::Config {
                place: "weights without a configuration",
                field: "width",
                found: dim.to_string(),
                expected: format!(
                    "a multiple of {SMALL_HEAD_DIM}, the channels of a head; give the model's folder with `model`"
                ),
            });
        }
        Ok(TransformerConfig {
            patch_size: [pf, ph, pw],
            num_attention_heads: dim / head_dim,
            attention_head_dim: head_dim,
            in_channels,
            out_channels: rows / (pf * ph * pw).max(1),
            text_dim,
            freq_dim,
            ffn_dim,
            num_layers: count(source, |i| format!("blocks.{i}.attn1.to_q.weight")),
            cross_attn_norm: source.shape("blocks.0.norm2.weight").is_some(),
            image_dim,
            added_kv_proj_dim: image_dim.map(|_| dim),
            pos_embed_seq_len: positions.and_then(|shape| shape.get(1).copied()),
            ..like
        })
    }

    /// A model of a width and a number of heads, otherwise the published one.
    pub fn with_heads(dim: usize, heads: usize, eps: f64) -> Self {
        let attention_head_dim = dim.checked_div(heads).unwrap_or(0);
        TransformerConfig { num_attention_heads: heads, attention_head_dim, eps, ..Default::default() }
    }

    /// Whether the number of heads was guessed: no published model has this width.
    pub fn has_small_heads(&self) -> bool {
        self.attention_head_dim == SMALL_HEAD_DIM
    }

    /// Width of the residual stream.
    pub fn dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// A head's channels for the rotary embedding of time, height and width: a third, rounded down to an even number,
    /// for each of the last two. Source: diffusers `WanRotaryPosEmbed`.
    pub(super) fn rope_channels(&self) -> [usize; 3] {
        let side = 2 * (self.attention_head_dim / 6);
        [self.attention_head_dim - 2 * side, side, side]
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let place = "transformer/config.json";
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place, field, found, expected: expected.to_string() })
        };
        if self.qk_norm.as_deref() != Some("rms_norm_across_heads") {
            return refuse("qk_norm", format!("{:?}", self.qk_norm), "\"rms_norm_across_heads\"");
        }
        if self.added_kv_proj_dim != self.image_dim.map(|_| self.dim()) {
            let expected = "the width of the blocks with image_dim, null without".to_string();
            return refuse("added_kv_proj_dim", format!("{:?}", self.added_kv_proj_dim), &expected);
        }
        if let Some(length) = self.pos_embed_seq_len {
            return refuse(
                "pos_embed_seq_len",
                length.to_string(),
                "null: first-last-frame models are not supported yet",
            );
        }
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("num_layers", self.num_layers),
            ("in_channels", self.in_channels),
            ("ffn_dim", self.ffn_dim),
            ("text_dim", self.text_dim),
            ("rope_max_seq_len", self.rope_max_seq_len),
            ("patch_size", self.patch_size.into_iter().min().unwrap_or(0)),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "0".to_string(), "more than 0");
        }
        if self.rope_max_seq_len > POSITIONS_MAX {
            return refuse("rope_max_seq_len", self.rope_max_seq_len.to_string(), &format!("at most {POSITIONS_MAX}"));
        }
        if !self.attention_head_dim.is_multiple_of(2) || self.attention_head_dim < 6 {
            return refuse("attention_head_dim", self.attention_head_dim.to_string(), "an even number, 6 or more");
        }
        if !self.freq_dim.is_multiple_of(2) || self.freq_dim == 0 {
            return refuse("freq_dim", self.freq_dim.to_string(), "an even number");
        }
        // A picture's channels stand beside those of the latents: its latents, and four that say what is known.
        let of_latents = self.out_channels == self.in_channels;
        let of_picture = self.in_channels == self.out_channels.saturating_mul(2).saturating_add(4);
        if self.out_channels > self.in_channels || self.image_dim.is_none() && !of_latents && !of_picture {
            let expected = format!("in_channels, {}: the velocity has the latents' shape", self.in_channels);
            return refuse("out_channels", self.out_channels.to_string(), &expected);
        }
        Ok(())
    }
}

/// Keys of `WanTransformer3DModel`.
const TRANSFORMER_KEYS: Keys = &[
    (
        &["patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"],
        Rule::Read,
    ),
    (&["freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "qk_norm", "eps", "image_dim"], Rule::Read),
    (&["added_kv_proj_dim", "rope_max_seq_len", "pos_embed_seq_len"], Rule::Read),
];

impl Configuration for TransformerConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[TRANSFORMER_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        dims::<5>(source, "patch_embedding.weight").is_ok_and(|[dim, ..]| dim == self.dim())
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        let (place, found) = ("transformer/config.json", Self::from_weights(source, Some(self))?);
        covers(place, "num_layers", self.num_layers, found.num_layers)?;
        covers(place, "cross_attn_norm", self.cross_attn_norm, found.cross_attn_norm)?;
        covers(place, "image_dim", self.image_dim.is_some(), found.image_dim.is_some())
    }
}

/// `config.json` of the authors' repositories, of the class `WanModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct AuthorsConfig {
    model_type: String,
    dim: usize,
    num_heads: usize,
    num_layers: Option<usize>,
    in_dim: Option<usize>,
    out_dim: Option<usize>,
    ffn_dim: Option<usize>,
    freq_dim: Option<usize>,
    #[serde(default = "published_eps")]
    eps: f64,
}

fn published_eps() -> f64 {
    1e-6
}

/// Keys of `WanModel`.
const AUTHORS_KEYS: Keys = &[
    (&["model_type", "dim", "num_heads", "num_layers", "in_dim", "out_dim", "ffn_dim", "freq_dim", "eps"], Rule::Read),
    (&["text_len"], Rule::Only(&["512"])),
    (&["text_dim"], Rule::Any), // weights say it
    (&["patch_size"], Rule::Only(&["[1, 2, 2]"])),
    (&["window_size"], Rule::Only(&["[-1, -1]"])),
    (&["qk_norm", "cross_attn_norm"], Rule::Only(&["true"])),
];

impl AuthorsConfig {
    /// The same in the words of Diffusers, as far as weights do not say it.
    pub fn like(&self) -> TransformerConfig {
        TransformerConfig::with_heads(self.dim, self.num_heads, self.eps)
    }
}

impl Configuration for AuthorsConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[AUTHORS_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        dims::<5>(source, "patch_embedding.weight").is_ok_and(|[dim, ..]| dim == self.dim)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        let place = "config.json of WanModel";
        let refuse = |field, found: String, expected: String| Err(Error::Config { place, field, found, expected });
        if !["t2v", "i2v", "ti2v"].contains(&self.model_type.as_str()) {
            let expected = "t2v, i2v or ti2v; others are not supported yet".to_string();
            return refuse("model_type", self.model_type.clone(), expected);
        }
        if self.num_heads == 0 || !self.dim.is_multiple_of(self.num_heads) {
            return refuse("num_heads", self.num_heads.to_string(), format!("a divisor of dim, {}", self.dim));
        }
        let found = TransformerConfig::from_weights(source, Some(&self.like()))?;
        let pairs = [
            ("num_layers", self.num_layers, found.num_layers),
            ("in_dim", self.in_dim, found.in_channels),
            ("out_dim", self.out_dim, found.out_channels),
            ("ffn_dim", self.ffn_dim, found.ffn_dim),
            ("freq_dim", self.freq_dim, found.freq_dim),
        ];
        let mut said = pairs.into_iter().filter_map(|(field, said, found)| Some((field, said?, found)));
        match said.find(|(_, said, found)| said != found) {
            Some((field, said, found)) => refuse(field, said.to_string(), format!("{found}, as in the weights")),
            None => Ok(()),
        }
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels at full resolution.
    pub base_dim: usize,
    /// The same of the decoder, where it differs.
    pub decoder_base_dim: Option<usize>,
    /// Channels of the latents.
    pub z_dim: usize,
    /// Factors of the width, from full resolution down.
    pub dim_mult: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// At which of the downsamplings time is halved too.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each channel of the latents.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each.
    pub latents_std: Vec<f64>,
    /// Whether levels have shortcuts around them and keep their width when they grow, as in Wan2.2 TI2V-5B.
    pub is_residual: bool,
    /// Channels that the decoder ends with: RGB of every pixel of a patch.
    pub out_channels: usize,
    /// The same, that the encoder begins with.
    in_channels: usize,
    patch_size: Option<usize>,
    scale_factor_temporal: Option<usize>,
    scale_factor_spatial: Option<usize>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temperal_downsample: vec![false, true, true],
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
                -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
                1.1253, 2.8251, 1.9160,
            ],
            is_residual: false,
            out_channels: 3,
            in_channels: 3,
            patch_size: None,
            scale_factor_temporal: None,
            scale_factor_spatial: None,
        }
    }
}

/// Statistics of the latents of Wan2.2 TI2V-5B, from `vae/config.json` of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
const WAN22_MEAN: [f64; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
const WAN22_STD: [f64; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

impl VaeConfig {
    /// The configuration that weights belong to, by their shapes. `like`: one with as many channels, for the statistics
    /// of the latents, which no weight has; without, those of the published models.
    pub fn from_weights(source: &dyn Source, like: Option<&VaeConfig>) -> Result<Self> {
        let [z_dim, ..] = dims::<5>(source, "post_quant_conv.weight")?;
        let [out_channels, ..] = dims::<5>(source, "decoder.conv_out.weight")?;
        let first = |level: usize| format!("decoder.up_blocks.{level}.resnets.0.conv1.weight");
        let levels = count(source, first);
        let mut widths =
            (0..levels).map(|level| Ok(dims::<5>(source, &first(level))?[0])).collect::<Result<Vec<_>>>()?;
        widths.reverse();
        let narrowest = widths.first().copied().unwrap_or(0).max(1);
        let is_residual = source.shape("decoder.up_blocks.0.upsampler.resample.1.weight").is_some();
        let sampler = if is_residual { "upsampler" } else { "upsamplers.0" };
        let doubles_time =
            |level: usize| source.shape(&format!("decoder.up_blocks.{level}.{sampler}.time_conv.weight")).is_some();
        let (latents_mean, latents_std) = match like.filter(|like| like.z_dim == z_dim) {
            Some(like) => (like.latents_mean.clone(), like.latents_std.clone()),
            None if is_residual => (WAN22_MEAN.to_vec(), WAN22_STD.to_vec()),
            None => (VaeConfig::default().latents_mean, VaeConfig::default().latents_std),
        };
        if latents_mean.len() != z_dim {
            return Err(Error::Config {
                place: "VAE weights without a configuration",
                field: "channels of the latents",
                found: z_dim.to_string(),
                expected: format!(
                    "{}, whose mean and deviation are known; give the model's folder with `model`",
                    latents_mean.len()
                ),
            });
        }
        Ok(VaeConfig {
            base_dim: dims::<5>(source, "encoder.conv_in.weight").map_or(narrowest, |[base, ..]| base),
            decoder_base_dim: Some(narrowest),
            z_dim,
            dim_mult: widths.iter().map(|width| width / narrowest).collect(),
            num_res_blocks: count(source, |i| format!("decoder.up_blocks.0.resnets.{i}.conv1.weight"))
                .saturating_sub(1),
            temperal_downsample: (0..levels.saturating_sub(1)).rev().map(doubles_time).collect(),
            latents_mean,
            latents_std,
            is_residual,
            out_channels,
            in_channels: out_channels,
            scale_factor_temporal: None,
            scale_factor_spatial: None,
            patch_size: (out_channels > 3).then(|| (out_channels / 3).isqrt()),
        })
    }

    /// Frames to a latent frame, after the first.
    pub fn scale_factor_temporal(&self) -> usize {
        1 << self.temperal_downsample.iter().filter(|&&halved| halved).count()
    }

    /// Pixels to a latent, along height and width.
    pub fn scale_factor_spatial(&self) -> usize {
        self.patch() << self.temperal_downsample.len()
    }

    /// Pixels that the decoder's last layer gives at once, along height and width.
    pub fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// About the most bytes that decoding a clip of latents of a height and width takes beside the weights; the number
    /// of frames does not matter.
    pub fn decode_bytes(&self, height: usize, width: usize) -> u64 {
        self.layers_bytes(self.decoder_base_dim.unwrap_or(self.base_dim), self.num_res_blocks + 1, height, width)
    }

    /// The same of encoding.
    pub fn encode_bytes(&self, height: usize, width: usize) -> u64 {
        self.layers_bytes(self.base_dim, self.num_res_blocks, height, width)
    }

    /// Every convolution over time keeps two frames of its input; while one runs, its input and its output are there,
    /// and what the block and the level began with beside them.
    fn layers_bytes(&self, base: usize, resnets: usize, height: usize, width: usize) -> u64 {
        const F32: usize = 4;
        /// Copies of a chunk's features that are there at once at most, by measurement (docs/results.md).
        const COPIES: usize = 6;
        let (mut kept, mut working) = (0, 0);
        let (mut pixels, mut frames) = (height * width, 1);
        for (level, factor) in self.dim_mult.iter().rev().enumerate() {
            let channels = factor * base;
            kept += 2 * resnets * 2 * channels * pixels;
            working = working.max(COPIES * frames * channels * pixels);
            if let Some(&in_time) = self.temperal_downsample.iter().rev().nth(level) {
                frames *= 1 + in_time as usize;
                pixels *= 4;
                if self.is_residual {
                    // A sampler and its shortcut keep this level's channels at the next one's size.
                    working = working.max(5 * frames * channels * pixels);
                }
            }
        }
        ((kept + working) * F32) as u64
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let place = "vae/config.json";
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place, field, found, expected: expected.to_string() })
        };
        if !(1..=8).contains(&self.patch()) {
            return refuse("patch_size", self.patch().to_string(), "null, or 1 to 8");
        }
        if self.out_channels != 3 * self.patch() * self.patch() {
            let expected = format!(
                "{}: RGB of every pixel of a patch (patch_size {})",
                3 * self.patch() * self.patch(),
                self.patch()
            );
            return refuse("out_channels", self.out_channels.to_string(), &expected);
        }
        if self.in_channels != self.out_channels {
            let expected = format!("out_channels, {}", self.out_channels);
            return refuse("in_channels", self.in_channels.to_string(), &expected);
        }
        if self.dim_mult.contains(&0) || self.base_dim == 0 || self.z_dim == 0 {
            return refuse("dim_mult, base_dim, z_dim", "0".to_string(), "more than 0");
        }
        let levels = self.temperal_downsample.len();
        if self.dim_mult.len() != levels + 1 || levels > 8 {
            let expected =
                format!("one factor more than temperal_downsample has entries, {levels}, of which at most 8");
            return refuse("dim_mult", format!("{:?}", self.dim_mult), &expected);
        }
        for (field, said, follows) in [
            ("scale_factor_temporal", self.scale_factor_temporal, self.scale_factor_temporal()),
            ("scale_factor_spatial", self.scale_factor_spatial, self.scale_factor_spatial()),
        ] {
            if let Some(said) = said.filter(|said| *said != follows) {
                let expected = format!("{follows}, which follows from temperal_downsample and patch_size");
                return refuse(field, said.to_string(), &expected);
            }
        }
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim || !values.iter().all(|v| v.is_finite()) {
                return refuse(field, format!("{values:?}"), &format!("{} finite numbers (z_dim)", self.z_dim));
            }
        }
        Ok(())
    }
}

/// Keys of `AutoencoderKLWan`.
const VAE_KEYS: Keys = &[
    (&["base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample"], Rule::Read),
    (&["latents_mean", "latents_std", "is_residual", "out_channels", "patch_size"], Rule::Read),
    (&["in_channels", "scale_factor_temporal", "scale_factor_spatial"], Rule::Read),
    (&["attn_scales"], Rule::Only(&["[]"])),
    (&["clip_output"], Rule::Only(&["true"])),
    (&["dropout"], Rule::Any), // of training
];

impl Configuration for VaeConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[VAE_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        dims::<5>(source, "post_quant_conv.weight").is_ok_and(|[z_dim, ..]| z_dim == self.z_dim)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        let place = "vae/config.json";
        let [z_dim, ..] = dims::<5>(source, "post_quant_conv.weight")?;
        if self.z_dim != z_dim {
            return Ok(()); // its latents' statistics are of others; the first weight of another shape says so
        }
        let found = Self::from_weights(source, Some(self))?;
        covers(place, "factors in dim_mult", self.dim_mult.len(), found.dim_mult.len())?;
        covers(place, "num_res_blocks", self.num_res_blocks, found.num_res_blocks)
    }
}

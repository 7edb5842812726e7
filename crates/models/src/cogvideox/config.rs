//! Configurations, as the published `config.json` files have them. A field that is missing has the default of the
//! reference's class, which is the 2B model.

use serde::Deserialize;

use crate::keys::{Configuration, Keys, OF_DIFFUSERS, Rule};
use crate::weights::{count, covers, decoder_levels, dims};
use crate::{Error, Result, Source};

/// `transformer/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels that go in: of the latents, and as many of a picture where there is one.
    pub in_channels: usize,
    /// Channels of the latents.
    pub out_channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    /// Width of the timestep's embedding.
    pub time_embed_dim: usize,
    /// Width of the second number's embedding that 1.5 of pictures is conditioned on.
    pub ofs_embed_dim: Option<usize>,
    /// Width of the text encoder's output.
    pub text_embed_dim: usize,
    /// Blocks.
    pub num_layers: usize,
    attention_bias: bool,
    /// Columns of the latents that it was made for.
    pub sample_width: usize,
    /// Rows.
    pub sample_height: usize,
    /// Frames of the video that it was made for.
    pub sample_frames: usize,
    /// Latents to a token, along height and width.
    pub patch_size: usize,
    /// The same along time; absent: one, of the first version.
    pub patch_size_t: Option<usize>,
    temporal_compression_ratio: usize,
    /// Tokens of the text.
    pub max_text_seq_length: usize,
    activation_fn: String,
    timestep_activation_fn: String,
    norm_elementwise_affine: bool,
    /// Of the norms but those of queries and keys.
    pub norm_eps: f64,
    /// What places in a frame are divided by, where they are sines.
    pub spatial_interpolation_scale: f64,
    /// What places in time are divided by.
    pub temporal_interpolation_scale: f64,
    /// Whether queries and keys are turned by their places.
    pub use_rotary_positional_embeddings: bool,
    /// Whether a learned table of places is added.
    pub use_learned_positional_embeddings: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            num_attention_heads: 30,
            attention_head_dim: 64,
            in_channels: 16,
            out_channels: 16,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embed_dim: 512,
            ofs_embed_dim: None,
            text_embed_dim: 4096,
            num_layers: 30,
            attention_bias: true,
            sample_width: 90,
            sample_height: 60,
            sample_frames: 49,
            patch_size: 2,
            patch_size_t: None,
            temporal_compression_ratio: 4,
            max_text_seq_length: 226,
            activation_fn: "gelu-approximate".to_string(),
            timestep_activation_fn: "silu".to_string(),
            norm_elementwise_affine: true,
            norm_eps: 1e-5,
            spatial_interpolation_scale: 1.875,
            temporal_interpolation_scale: 1.0,
            use_rotary_positional_embeddings: false,
            use_learned_positional_embeddings: false,
        }
    }
}

/// Width of the one published model whose places are sines.
const WIDTH_OF_2B: usize = 1920;
/// Latents each way, and frames, that version 1.5 was made for.
const SAMPLE_OF_1_5: (usize, usize) = (300, 81);

/// More than any size of a model; products of a few of them fit into a number.
const SIZE_MAX: usize = 1 << 16;

impl TransformerConfig {
    /// The configuration that weights belong to, by their shapes. What shapes do not say is that of the published
    /// models: the 2B model alone has sines for places.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let published = TransformerConfig::default();
        let (patch, name) = (published.patch_size, "patch_embed.proj.weight");
        let (dim, in_channels, patch_size_t) = match source.shape(name).as_deref() {
            Some([dim, inputs]) => (*dim, inputs / (patch * patch * 2), Some(2)),
            _ => {
                let [dim, channels, _, _] = dims(source, name)?;
                (dim, channels, None)
            }
        };
        let [_, text_embed_dim] = dims(source, "patch_embed.text_proj.weight")?;
        let [head_dim] = dims(source, "transformer_blocks.0.attn1.norm_q.weight")?;
        let [time_embed_dim, _] = dims(source, "time_embedding.linear_1.weight")?;
        let [rows, _] = dims(source, "proj_out.weight")?;
        // The authors' file of the 2B model has its sines as a table, too.
        let learned = dim != WIDTH_OF_2B && source.shape("patch_embed.pos_embedding").is_some();
        let ofs_embed_dim = dims::<2>(source, "ofs_embedding.linear_1.weight").ok().map(|[_, width]| width);
        let (sample_width, sample_height, sample_frames) = match patch_size_t {
            Some(_) => (SAMPLE_OF_1_5.0, SAMPLE_OF_1_5.0, SAMPLE_OF_1_5.1),
            None => (published.sample_width, published.sample_height, published.sample_frames),
        };
        Ok(TransformerConfig {
            num_attention_heads: dim / head_dim.max(1),
            attention_head_dim: head_dim,
            in_channels,
            out_channels: rows / (patch * patch * patch_size_t.unwrap_or(1)),
            time_embed_dim,
            ofs_embed_dim,
            text_embed_dim,
            num_layers: count(source, |i| format!("transformer_blocks.{i}.attn1.to_q.weight")),
            patch_size_t,
            sample_width,
            sample_height,
            sample_frames,
            use_rotary_positional_embeddings: dim != WIDTH_OF_2B,
            use_learned_positional_embeddings: learned,
            ..published
        })
    }

    /// Width of the residual streams.
    pub fn dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Latents to a token, along time, height and width.
    pub fn patch(&self) -> [usize; 3] {
        [self.patch_size_t.unwrap_or(1), self.patch_size, self.patch_size]
    }

    /// Whether it starts from a picture, whose latents go in beside those of the video.
    pub fn takes_picture(&self) -> bool {
        self.in_channels != self.out_channels
    }

    /// Latent frames that it was made for.
    pub fn sample_latent_frames(&self) -> usize {
        self.sample_frames.saturating_sub(1) / self.temporal_compression_ratio.max(1) + 1
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "transformer/config.json", field, found, expected: expected.to_string() })
        };
        let flags = [
            ("flip_sin_to_cos", self.flip_sin_to_cos),
            ("attention_bias", self.attention_bias),
            ("norm_elementwise_affine", self.norm_elementwise_affine),
        ];
        if let Some((field, _)) = flags.into_iter().find(|(_, flag)| !flag) {
            return refuse(field, "false".to_string(), "true");
        }
        if self.freq_shift != 0.0 {
            return refuse("freq_shift", self.freq_shift.to_string(), "0");
        }
        let names = [
            ("activation_fn", &self.activation_fn, "gelu-approximate"),
            ("timestep_activation_fn", &self.timestep_activation_fn, "silu"),
        ];
        if let Some((field, found, expected)) = names.into_iter().find(|(_, found, expected)| found != expected) {
            return refuse(field, found.clone(), expected);
        }
        if self.temporal_compression_ratio != 4 {
            return refuse("temporal_compression_ratio", self.temporal_compression_ratio.to_string(), "4");
        }
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("num_layers", self.num_layers),
            ("out_channels", self.out_channels),
            ("time_embed_dim", self.time_embed_dim),
            ("text_embed_dim", self.text_embed_dim),
            ("max_text_seq_length", self.max_text_seq_length),
            ("patch_size", self.patch_size),
            ("sample_width", self.sample_width / self.patch_size.max(1)),
            ("sample_height", self.sample_height / self.patch_size.max(1)),
            ("sample_frames", self.sample_frames),
            ("patch_size_t", self.patch_size_t.unwrap_or(1)),
            ("ofs_embed_dim", self.ofs_embed_dim.unwrap_or(1)),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "0".to_string(), "more than 0");
        }
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size > SIZE_MAX) {
            return refuse(field, size.to_string(), &format!("at most {SIZE_MAX}"));
        }
        if ![self.out_channels, 2 * self.out_channels].contains(&self.in_channels) {
            let expected = format!("out_channels, {}, or twice as many for a picture", self.out_channels);
            return refuse("in_channels", self.in_channels.to_string(), &expected);
        }
        // A quarter of a head's channels turn with time, in pairs, and three eighths with each place.
        if !self.attention_head_dim.is_multiple_of(16) {
            return refuse("attention_head_dim", self.attention_head_dim.to_string(), "a multiple of 16");
        }
        if self.use_learned_positional_embeddings && !self.use_rotary_positional_embeddings {
            return refuse("use_rotary_positional_embeddings", "false".to_string(), "true, with learned places");
        }
        if self.use_learned_positional_embeddings && self.patch_size_t.is_some() {
            return refuse("patch_size_t", format!("{:?}", self.patch_size_t), "null, with learned places");
        }
        let numbers = [
            ("spatial_interpolation_scale", self.spatial_interpolation_scale),
            ("temporal_interpolation_scale", self.temporal_interpolation_scale),
            ("norm_eps", self.norm_eps),
        ];
        match numbers.into_iter().find(|(_, number)| number.is_nan() || *number <= 0.0) {
            Some((field, number)) => refuse(field, number.to_string(), "a number above 0"),
            None => Ok(()),
        }
    }
}

/// Keys of `CogVideoXTransformer3DModel`.
const TRANSFORMER_KEYS: Keys = &[
    (&["num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "flip_sin_to_cos"], Rule::Read),
    (&["freq_shift", "time_embed_dim", "ofs_embed_dim", "text_embed_dim", "num_layers", "attention_bias"], Rule::Read),
    (&["sample_width", "sample_height", "sample_frames", "patch_size", "patch_size_t"], Rule::Read),
    (&["temporal_compression_ratio", "max_text_seq_length", "activation_fn", "timestep_activation_fn"], Rule::Read),
    (&["norm_elementwise_affine", "norm_eps", "spatial_interpolation_scale"], Rule::Read),
    (&["temporal_interpolation_scale", "use_rotary_positional_embeddings"], Rule::Read),
    (&["use_learned_positional_embeddings"], Rule::Read),
    (&["patch_bias"], Rule::Any), // weights say it
    (&["dropout"], Rule::Any),    // of training
];

impl Configuration for TransformerConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[TRANSFORMER_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        Self::from_weights(source).is_ok_and(|found| found.dim() == self.dim() && found.patch() == self.patch())
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        let (place, found) = ("transformer/config.json", Self::from_weights(source)?);
        covers(place, "num_layers", self.num_layers, found.num_layers)?;
        covers(place, "ofs_embed_dim", self.ofs_embed_dim.is_some(), found.ofs_embed_dim.is_some())?;
        let learned = self.use_learned_positional_embeddings;
        covers(place, "use_learned_positional_embeddings", learned, found.use_learned_positional_embeddings)
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
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
    /// Of the norms.
    pub norm_eps: f64,
    act_fn: String,
    /// What latents are multiplied by for the sampler.
    pub scaling_factor: f64,
    /// Whether latents of pictures are divided by it instead, as version 1.5 was trained.
    pub invert_scale_latents: bool,
    /// Frames to a latent frame.
    pub temporal_compression_ratio: usize,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            latent_channels: 16,
            out_channels: 3,
            block_out_channels: vec![128, 256, 256, 512],
            layers_per_block: 3,
            norm_num_groups: 32,
            norm_eps: 1e-6,
            act_fn: "silu".to_string(),
            scaling_factor: 1.15258426,
            invert_scale_latents: false,
            temporal_compression_ratio: 4,
            use_quant_conv: false,
            use_post_quant_conv: false,
        }
    }
}

impl VaeConfig {
    /// The configuration that weights belong to, by their shapes. `scaling_factor`, of which no shape speaks, is that
    /// of the 2B model.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let (block_out_channels, layers_per_block) = decoder_levels(source)?;
        let [_, latent_channels, ..] = dims::<5>(source, "decoder.conv_in.conv.weight")?;
        let [out_channels, ..] = dims::<5>(source, "decoder.conv_out.conv.weight")?;
        Ok(VaeConfig { latent_channels, out_channels, block_out_channels, layers_per_block, ..VaeConfig::default() })
    }

    /// Pixels to a latent, along height and width.
    pub fn spatial(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// Latent frames that so many frames are encoded to.
    pub fn latent_frames(&self, frames: usize) -> usize {
        frames.saturating_sub(1) / self.temporal_compression_ratio + 1
    }

    /// About the most bytes that decoding a window of latents takes beside the weights: at full size, what stands
    /// around the first block after the last doubling, of the frames of a chunk, and what the convolutions remember.
    pub fn decode_bytes(&self, rows: usize, columns: usize, latent_frames: usize) -> u64 {
        const F32: usize = 4;
        const COPIES: usize = 4;
        const REMEMBERED: usize = 2;
        let widest = self.block_out_channels.get(1).or(self.block_out_channels.first()).copied().unwrap_or(1);
        let frames = latent_frames.clamp(1, 3) * self.temporal_compression_ratio;
        let pixels = rows * columns * self.spatial() * self.spatial();
        let remembered = REMEMBERED * 2 * (self.layers_per_block + 1);
        (pixels * widest * (frames * COPIES + remembered) * F32) as u64
    }

    /// The same of encoding a picture of so many latents each way.
    pub fn encode_bytes(&self, rows: usize, columns: usize) -> u64 {
        const F32: usize = 4;
        const COPIES: usize = 4;
        let widest = self.block_out_channels.first().copied().unwrap_or(1);
        (rows * columns * self.spatial() * self.spatial() * widest * COPIES * F32) as u64
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "vae/config.json", field, found, expected: expected.to_string() })
        };
        if self.use_quant_conv || self.use_post_quant_conv {
            return refuse("use_quant_conv, use_post_quant_conv", "true".to_string(), "false");
        }
        if self.act_fn != "silu" {
            return refuse("act_fn", self.act_fn.clone(), "silu");
        }
        let (levels, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        if self.temporal_compression_ratio != 4 || !(3..=8).contains(&levels) {
            let found = format!("{} with {levels} levels", self.temporal_compression_ratio);
            return refuse("temporal_compression_ratio", found, "4, with 3 to 8 levels");
        }
        if groups == 0 || self.block_out_channels.iter().any(|&width| width == 0 || width % groups != 0) {
            let expected = format!("multiples of norm_num_groups, {groups}");
            return refuse("block_out_channels", format!("{:?}", self.block_out_channels), &expected);
        }
        if self.out_channels != 3 || self.latent_channels == 0 {
            let found = format!("{}, {}", self.out_channels, self.latent_channels);
            return refuse("out_channels, latent_channels", found, "3, and more than 0");
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0 && self.norm_eps > 0.0) {
            return refuse("scaling_factor", self.scaling_factor.to_string(), "a number above 0");
        }
        Ok(())
    }
}

/// Keys of `AutoencoderKLCogVideoX`.
const VAE_KEYS: Keys = &[
    (&["latent_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"], Rule::Read),
    (&["norm_eps", "act_fn", "scaling_factor", "invert_scale_latents", "temporal_compression_ratio"], Rule::Read),
    (&["use_quant_conv", "use_post_quant_conv"], Rule::Read),
    (&["in_channels"], Rule::Only(&["3"])),
    (&["down_block_types"], Rule::Each(&["CogVideoXDownBlock3D"])),
    (&["up_block_types"], Rule::Each(&["CogVideoXUpBlock3D"])),
    (&["shift_factor", "latents_mean", "latents_std"], Rule::Only(&["null"])),
    (&["sample_height", "sample_width", "force_upcast"], Rule::Any), // of tiles, and of training
];

impl Configuration for VaeConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[VAE_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        Self::from_weights(source).is_ok_and(|found| found.block_out_channels == self.block_out_channels)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        let (place, found) = ("vae/config.json", Self::from_weights(source)?);
        let (said, has) = (self.block_out_channels.len(), found.block_out_channels.len());
        covers(place, "block_out_channels", said, has)?;
        covers(place, "layers_per_block", self.layers_per_block, found.layers_per_block)
    }
}

//! Configurations, as the published `config.json` files have them. A field that is missing has the published model's
//! value.

use serde::Deserialize;

use crate::keys::{Configuration, Keys, OF_DIFFUSERS, Rule};
use crate::weights::{count, covers, decoder_levels, dims};
use crate::{Error, Result, Source};

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the velocity.
    pub out_channels: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Blocks with a stream each for video and text.
    pub num_layers: usize,
    /// Blocks with one stream for both.
    pub num_single_layers: usize,
    /// Blocks that prepare the text.
    pub num_refiner_layers: usize,
    /// Width of the feed-forward networks over that of the stream.
    pub mlp_ratio: f64,
    /// Latents to a token, along height and width.
    pub patch_size: usize,
    /// The same along time.
    pub patch_size_t: usize,
    qk_norm: Option<String>,
    /// Whether the model is conditioned on a guidance scale.
    pub guidance_embeds: bool,
    /// Width of the text encoder's output.
    pub text_embed_dim: usize,
    /// Width of the second text encoder's output, one vector a text.
    pub pooled_projection_dim: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// A head's channels for time, height and width.
    pub rope_axes_dim: [usize; 3],
    image_condition_type: Option<String>,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        TransformerConfig {
            in_channels: 16,
            out_channels: 16,
            num_attention_heads: 24,
            attention_head_dim: 128,
            num_layers: 20,
            num_single_layers: 40,
            num_refiner_layers: 2,
            mlp_ratio: 4.0,
            patch_size: 2,
            patch_size_t: 1,
            qk_norm: Some("rms_norm".to_string()),
            guidance_embeds: true,
            text_embed_dim: 4096,
            pooled_projection_dim: 768,
            rope_theta: 256.0,
            rope_axes_dim: [16, 56, 56],
            image_condition_type: None,
        }
    }
}

impl TransformerConfig {
    /// The configuration that weights belong to, by their shapes. What shapes do not say is that of the published
    /// model.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let [dim, in_channels, patch_size_t, patch_size, _] = dims(source, "x_embedder.proj.weight")?;
        let [head_dim] = dims(source, "transformer_blocks.0.attn.norm_q.weight")?;
        let [_, text_embed_dim] = dims(source, "context_embedder.proj_in.weight")?;
        let [_, pooled_projection_dim] = dims(source, "time_text_embed.text_embedder.linear_1.weight")?;
        let [mlp_dim, _] = dims(source, "transformer_blocks.0.ff.net.0.proj.weight")?;
        let [rows, _] = dims(source, "proj_out.weight")?;
        let published = TransformerConfig::default();
        // Heads of other sizes have an eighth of their channels for time too.
        let axis = head_dim * 7 / 16 / 2 * 2;
        Ok(TransformerConfig {
            in_channels,
            out_channels: rows / (patch_size_t * patch_size * patch_size).max(1),
            num_attention_heads: dim.checked_div(head_dim).unwrap_or(0),
            attention_head_dim: head_dim,
            num_layers: count(source, |i| format!("transformer_blocks.{i}.norm1.linear.weight")),
            num_single_layers: count(source, |i| format!("single_transformer_blocks.{i}.norm.linear.weight")),
            num_refiner_layers: count(source, |i| {
                format!("context_embedder.token_refiner.refiner_blocks.{i}.norm1.weight")
            }),
            mlp_ratio: mlp_dim as f64 / dim.max(1) as f64,
            patch_size,
            patch_size_t,
            guidance_embeds: source.shape("time_text_embed.guidance_embedder.linear_1.weight").is_some(),
            text_embed_dim,
            pooled_projection_dim,
            rope_axes_dim: [head_dim - 2 * axis, axis, axis],
            ..published
        })
    }

    /// Width of the residual streams.
    pub fn dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Width of the feed-forward networks.
    pub fn mlp_dim(&self) -> usize {
        (self.dim() as f64 * self.mlp_ratio) as usize
    }

    /// Latents to a token, along time, height and width.
    pub fn patch(&self) -> [usize; 3] {
        [self.patch_size_t, self.patch_size, self.patch_size]
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "transformer/config.json", field, found, expected: expected.to_string() })
        };
        if self.qk_norm.as_deref() != Some("rms_norm") {
            return refuse("qk_norm", format!("{:?}", self.qk_norm), "\"rms_norm\"");
        }
        if let Some(kind) = &self.image_condition_type {
            return refuse("image_condition_type", kind.clone(), "null: image-to-video models are not supported yet");
        }
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("num_layers", self.num_layers),
            ("in_channels", self.in_channels),
            ("text_embed_dim", self.text_embed_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("patch_size", self.patch_size.min(self.patch_size_t)),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "0".to_string(), "more than 0");
        }
        let axes = self.rope_axes_dim;
        if axes.iter().fold(0, |sum: usize, n| sum.saturating_add(*n)) != self.attention_head_dim
            || axes.iter().any(|n| n % 2 != 0)
        {
            let expected = format!("three even numbers that add up to attention_head_dim, {}", self.attention_head_dim);
            return refuse("rope_axes_dim", format!("{axes:?}"), &expected);
        }
        if self.out_channels != self.in_channels {
            let expected = format!("in_channels, {}: the velocity has the latents' shape", self.in_channels);
            return refuse("out_channels", self.out_channels.to_string(), &expected);
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0) {
            return refuse("mlp_ratio", self.mlp_ratio.to_string(), "more than 0, at most 64");
        }
        Ok(())
    }
}

/// Keys of `HunyuanVideoTransformer3DModel`.
const TRANSFORMER_KEYS: Keys = &[
    (&["in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers"], Rule::Read),
    (&["num_single_layers", "num_refiner_layers", "mlp_ratio", "patch_size", "patch_size_t", "qk_norm"], Rule::Read),
    (&["guidance_embeds", "text_embed_dim", "pooled_projection_dim", "rope_theta", "rope_axes_dim"], Rule::Read),
    (&["image_condition_type"], Rule::Read),
];

impl Configuration for TransformerConfig {
    const NAMED_BY: &'static str = "_class_name";
    const KEYS: &'static [Keys] = &[TRANSFORMER_KEYS, OF_DIFFUSERS];

    fn fits(&self, source: &dyn Source) -> bool {
        dims::<5>(source, "x_embedder.proj.weight").is_ok_and(|[dim, ..]| dim == self.dim())
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        let (place, found) = ("transformer/config.json", Self::from_weights(source)?);
        covers(place, "num_layers", self.num_layers, found.num_layers)?;
        covers(place, "num_single_layers", self.num_single_layers, found.num_single_layers)?;
        covers(place, "num_refiner_layers", self.num_refiner_layers, found.num_refiner_layers)?;
        covers(place, "guidance_embeds", self.guidance_embeds, found.guidance_embeds)
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, Deserialize)]
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
    /// What latents are multiplied by for the sampler.
    pub scaling_factor: f64,
    /// Pixels to a latent, along height and width.
    pub spatial_compression_ratio: usize,
    /// Frames to a latent frame, after the first.
    pub temporal_compression_ratio: usize,
    /// Whether the middle block has an attention.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            latent_channels: 16,
            out_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.476986,
            spatial_compression_ratio: 8,
            temporal_compression_ratio: 4,
            mid_block_add_attention: true,
        }
    }
}

impl VaeConfig {
    /// The configuration that weights belong to, by their shapes; the factor of the latents is the published one.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let (block_out_channels, layers_per_block) = decoder_levels(source)?;
        let [latent_channels, ..] = dims::<5>(source, "post_quant_conv.weight")?;
        let [out_channels, ..] = dims::<5>(source, "decoder.conv_out.conv.weight")?;
        Ok(VaeConfig {
            latent_channels,
            out_channels,
            block_out_channels,
            layers_per_block,
            mid_block_add_attention: source.shape("decoder.mid_block.attentions.0.to_q.weight").is_some(),
            ..VaeConfig::default()
        })
    }

    /// About the most bytes that decoding a window of latents takes beside the weights: at full size, what stands
    /// around the first block after the last doubling, of the frames of a window of time. The number of copies is
    /// measured.
    pub fn decode_bytes(&self, rows: usize, columns: usize, latent_frames: usize) -> u64 {
        const F32: usize = 4;
        const COPIES: usize = 3;
        let widest = self.block_out_channels.get(1).or(self.block_out_channels.first()).copied().unwrap_or(1);
        let frames = (latent_frames.clamp(1, 5) - 1) * self.temporal_compression_ratio + 1;
        let pixels = rows * columns * self.spatial_compression_ratio * self.spatial_compression_ratio;
        (pixels * frames * widest * COPIES * F32) as u64
    }

    /// Refuses what would load but compute something else, or not at all.
    pub fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: "vae/config.json", field, found, expected: expected.to_string() })
        };
        let levels = self.block_out_channels.len();
        let ratio = self.spatial_compression_ratio;
        if !ratio.is_power_of_two() || ratio.ilog2() as usize > levels || ratio > 64 {
            return refuse(
                "spatial_compression_ratio",
                ratio.to_string(),
                "a power of two, a doubling a level at most",
            );
        }
        if self.temporal_compression_ratio != 4 || levels < 3 {
            return refuse(
                "temporal_compression_ratio",
                self.temporal_compression_ratio.to_string(),
                "4, with 3 levels or more",
            );
        }
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.iter().any(|&width| width == 0 || width % groups != 0) {
            let expected = format!("multiples of norm_num_groups, {groups}");
            return refuse("block_out_channels", format!("{:?}", self.block_out_channels), &expected);
        }
        if self.out_channels != 3 || self.latent_channels == 0 {
            return refuse(
                "out_channels, latent_channels",
                format!("{}, {}", self.out_channels, self.latent_channels),
                "3, and more than 0",
            );
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return refuse("scaling_factor", self.scaling_factor.to_string(), "a number above 0");
        }
        Ok(())
    }
}

/// Keys of `AutoencoderKLHunyuanVideo`, and of the authors' `AutoencoderKLCausal3D`.
const VAE_KEYS: Keys = &[
    (&["latent_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"], Rule::Read),
    (&["scaling_factor", "spatial_compression_ratio", "temporal_compression_ratio"], Rule::Read),
    (&["mid_block_add_attention"], Rule::Read),
    (&["in_channels"], Rule::Only(&["3"])),
    (&["act_fn"], Rule::Only(&["\"silu\""])),
    (&["down_block_types"], Rule::Each(&["HunyuanVideoDownBlock3D", "DownEncoderBlockCausal3D"])),
    (&["up_block_types"], Rule::Each(&["HunyuanVideoUpBlock3D", "UpDecoderBlockCausal3D"])),
    (&["time_compression_ratio"], Rule::Only(&["4"])),
    (&["mid_block_causal_attn"], Rule::Only(&["true"])),
    (&["sample_size", "sample_tsize", "force_upcast"], Rule::Any), // of tiles, and of training
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
        covers(place, "layers_per_block", self.layers_per_block, found.layers_per_block)?;
        covers(place, "mid_block_add_attention", self.mid_block_add_attention, found.mid_block_add_attention)
    }
}

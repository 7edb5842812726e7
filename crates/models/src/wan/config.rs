//! Configurations, as the published `config.json` files have them. A field that is missing has the published model's value.

use serde::Deserialize;

use crate::{Error, Result};

/// `transformer/config.json`.
#[derive(Debug, Clone, Deserialize)]
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

impl TransformerConfig {
    /// Width of the residual stream.
    pub fn dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
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
        if !self.attention_head_dim.is_multiple_of(2) || self.attention_head_dim < 6 {
            return refuse("attention_head_dim", self.attention_head_dim.to_string(), "an even number, 6 or more");
        }
        if !self.freq_dim.is_multiple_of(2) || self.freq_dim == 0 {
            return refuse("freq_dim", self.freq_dim.to_string(), "an even number");
        }
        // A picture's channels stand beside those of the latents.
        if self.out_channels > self.in_channels || self.image_dim.is_none() && self.out_channels != self.in_channels {
            let expected = format!("in_channels, {}: the velocity has the latents' shape", self.in_channels);
            return refuse("out_channels", self.out_channels.to_string(), &expected);
        }
        Ok(())
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
    patch_size: Option<usize>,
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
            patch_size: None,
        }
    }
}

impl VaeConfig {
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
        if self.dim_mult.contains(&0) || self.base_dim == 0 || self.z_dim == 0 {
            return refuse("dim_mult, base_dim, z_dim", "0".to_string(), "more than 0");
        }
        let levels = self.temperal_downsample.len();
        if self.dim_mult.len() != levels + 1 || levels > 8 {
            let expected =
                format!("one factor more than temperal_downsample has entries, {levels}, of which at most 8");
            return refuse("dim_mult", format!("{:?}", self.dim_mult), &expected);
        }
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim || !values.iter().all(|v| v.is_finite()) {
                return refuse(field, format!("{values:?}"), &format!("{} finite numbers (z_dim)", self.z_dim));
            }
        }
        Ok(())
    }
}

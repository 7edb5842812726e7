//! Configurations, as the published `config.json` files have them. A field that is missing has the published model's value.

use serde::Deserialize;

use crate::{Error, Result};

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
    /// Whether the model is told a guidance scale.
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
    /// Width of the residual streams.
    pub fn dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
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
        if axes.iter().sum::<usize>() != self.attention_head_dim || axes.iter().any(|n| n % 2 != 0) {
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

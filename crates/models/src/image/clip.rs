//! The vision half of CLIP (Radford et al. 2021, arXiv 2103.00020), as image-to-video models use it: the features of
//! every patch before the last layer.
//!
//! Names and arithmetic follow transformers `CLIPVisionModel`.

use candle_core::Tensor;
use navicache_kernels::residual;
use serde::Deserialize;

use crate::keys::{Configuration, Keys, OF_TRANSFORMERS, Rule};
use crate::nn::{LayerNorm, Linear, attention, split_heads};
use crate::weights::{count, covers, dims};
use crate::{Error, Precision, Result, Source, Weights};

/// `image_encoder/config.json`. A field that is missing has the value of the class.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Width of the features.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Height and width of the picture.
    pub image_size: usize,
    /// Pixels to a token, along height and width.
    pub patch_size: usize,
    /// Of the norms.
    pub layer_norm_eps: f64,
    hidden_act: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Activation {
    Gelu,
    QuickGelu,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::QuickGelu,
        }
    }
}

impl Config {
    /// The configuration that weights belong to, by their shapes. `like`: one of the same width, for what no shape
    /// says; without, heads are those of ViT-H (80 channels) where they fit, and the activation is its.
    pub fn from_weights(source: &dyn Source, like: Option<&Config>) -> Result<Self> {
        let before = if source.shape("embeddings.class_embedding").is_some() { "" } else { "vision_model." };
        let layer = |i: usize| format!("{before}encoder.layers.{i}.self_attn.q_proj.weight");
        let [tokens, hidden_size] = dims(source, &format!("{before}embeddings.position_embedding.weight"))?;
        let [_, _, patch_size, _] = dims(source, &format!("{before}embeddings.patch_embedding.weight"))?;
        let [intermediate_size, _] = dims(source, &format!("{before}encoder.layers.0.mlp.fc1.weight"))?;
        let like = like.filter(|like| like.hidden_size == hidden_size);
        let head_dim = [80, 64, 16].into_iter().find(|&width| hidden_size.is_multiple_of(width)).unwrap_or(hidden_size);
        Ok(Config {
            hidden_size,
            intermediate_size,
            num_hidden_layers: count(source, layer),
            num_attention_heads: like.map_or(hidden_size / head_dim.max(1), |like| like.num_attention_heads),
            image_size: tokens.saturating_sub(1).isqrt() * patch_size,
            patch_size,
            layer_norm_eps: like.map_or(1e-5, |like| like.layer_norm_eps),
            hidden_act: like.map_or(Activation::Gelu, |like| like.hidden_act),
        })
    }

    /// Tokens of a picture: one for all of it, and one a patch.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    fn check(&self) -> Result<()> {
        let refuse = |field, found: usize, expected: &str| {
            Err(Error::Config {
                place: "image_encoder/config.json",
                field,
                found: found.to_string(),
                expected: expected.to_string(),
            })
        };
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse("num_attention_heads", self.num_attention_heads, "a divisor of hidden_size");
        }
        if self.patch_size == 0 || self.image_size < self.patch_size || self.image_size > 4096 {
            return refuse("patch_size", self.patch_size, "more than 0, and at most image_size, which is at most 4096");
        }
        if self.num_hidden_layers == 0 {
            return refuse("num_hidden_layers", 0, "more than 0");
        }
        Ok(())
    }
}

/// Keys of `CLIPVisionConfig`.
const KEYS: Keys = &[
    (&["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"], Rule::Read),
    (&["patch_size", "layer_norm_eps", "hidden_act"], Rule::Read),
    (&["num_channels"], Rule::Only(&["3"])),
    (&["projection_dim"], Rule::Any), // of what is not read: the features are taken before it
];

impl Configuration for Config {
    const NAMED_BY: &'static str = "model_type";
    const KEYS: &'static [Keys] = &[KEYS, OF_TRANSFORMERS];

    fn fits(&self, source: &dyn Source) -> bool {
        Self::from_weights(source, None).is_ok_and(|found| found.hidden_size == self.hidden_size)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        covers(
            "image_encoder/config.json",
            "num_hidden_layers",
            self.num_hidden_layers,
            Self::from_weights(source, Some(self))?.num_hidden_layers,
        )
    }
}

/// The encoder, without its last layer.
pub struct ClipVision {
    config: Config,
    patch_embedding: Tensor,    // (3 * patch * patch, hidden)
    class_embedding: Tensor,    // (1, hidden)
    position_embedding: Tensor, // (tokens, hidden)
    pre_layrnorm: LayerNorm,
    layers: Vec<Layer>,
}

impl ClipVision {
    /// Reads the weights of `CLIPVisionModel`, with `vision_model.` before their names or without.
    pub fn new(config: &Config, w: Weights) -> Result<Self> {
        config.check()?;
        let w = if w.contains("embeddings.class_embedding") { w } else { w.pp("vision_model") };
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let embeddings = w.pp("embeddings");
        let kernel = embeddings.pp("patch_embedding").f32("weight", &[hidden, 3, patch, patch])?;
        let shape = LayerShape {
            hidden,
            middle: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            activation: config.hidden_act,
        };
        let layer = |i| Layer::new(shape, w.pp("encoder").pp("layers").pp(i));
        Ok(ClipVision {
            patch_embedding: kernel.flatten_from(1)?.t()?.contiguous()?,
            class_embedding: embeddings.f32("class_embedding", &[hidden])?.unsqueeze(0)?,
            position_embedding: embeddings.pp("position_embedding").f32("weight", &[config.tokens(), hidden])?,
            pre_layrnorm: LayerNorm::affine(hidden, config.layer_norm_eps, w.pp("pre_layrnorm"))?,
            layers: (0..config.num_hidden_layers - 1).map(layer).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Features of a normalised picture, (1, 3, image_size, image_size) -> (1, tokens, hidden_size).
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (patch, across) = (self.config.patch_size, self.config.image_size / self.config.patch_size);
        let used = across * patch; // a convolution leaves out what is no whole patch
        let patches = pixels.narrow(2, 0, used)?.narrow(3, 0, used)?.reshape((3, across, patch, across, patch))?;
        let patches = patches.permute((1, 3, 0, 2, 4))?.reshape((across * across, 3 * patch * patch))?;
        let tokens = Tensor::cat(&[&self.class_embedding, &patches.matmul(&self.patch_embedding)?], 0)?;
        let mut x = self.pre_layrnorm.forward(&(tokens + &self.position_embedding)?)?; // (tokens, hidden)
        for layer in &self.layers {
            x = layer.forward(&x, None)?;
        }
        Ok(x.unsqueeze(0)?)
    }
}

/// What a layer of either half of CLIP has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerShape {
    pub hidden: usize,
    pub middle: usize,
    pub heads: usize,
    pub eps: f64,
    pub activation: Activation,
}

/// A layer of either half of CLIP.
pub(crate) struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    heads: usize,
}

impl Layer {
    pub(crate) fn new(shape: LayerShape, w: Weights) -> Result<Self> {
        let LayerShape { hidden, middle, heads, eps, activation } = shape;
        let (attn, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        let linear = |name: &str| Linear::new(hidden, hidden, attn.pp(name));
        Ok(Layer {
            layer_norm1: LayerNorm::affine(hidden, eps, w.pp("layer_norm1"))?,
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            layer_norm2: LayerNorm::affine(hidden, eps, w.pp("layer_norm2"))?,
            fc1: Linear::new(hidden, middle, mlp.pp("fc1"))?,
            fc2: Linear::new(middle, hidden, mlp.pp("fc2"))?,
            activation,
            heads,
        })
    }

    /// `mask` is added to the scores, (heads, tokens, tokens). // (tokens, hidden) -> (tokens, hidden)
    pub(crate) fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let h = self.layer_norm1.forward(x)?;
        let [q, k, v] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|layer| split_heads(&layer.forward(&h)?, self.heads));
        let (q, k, v) = (q?, k?, v?);
        let scale = 1.0 / (q.dim(2)? as f64).sqrt();
        let mixed = attention(&q, &k, &v, scale, mask, Precision::F32)?;
        let x = residual(x, &self.out_proj.forward(&mixed)?)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let h = match self.activation {
            Activation::Gelu => h.gelu_erf()?,
            Activation::QuickGelu => (&h * candle_nn::ops::sigmoid(&(&h * 1.702)?)?)?,
        };
        Ok(residual(&x, &self.fc2.forward(&h)?)?)
    }
}

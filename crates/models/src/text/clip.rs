//! The text half of CLIP (Radford et al. 2021, arXiv 2103.00020): one vector for a text.
//!
//! Names and arithmetic follow transformers `CLIPTextModel`.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::check_ids;
use crate::image::clip::{Activation, Layer, LayerShape};
use crate::keys::{Configuration, Keys, OF_TRANSFORMERS, Rule};
use crate::nn::{LayerNorm, causal_mask};
use crate::weights::{count, covers, dims};
use crate::{Error, Matrix, Result, Source, Weights};

const PLACE: &str = "text_encoder_2/config.json";
/// Channels of a head of CLIP-L, where no configuration says them.
const HEAD_DIM: usize = 64;

/// The fields of `config.json` that the encoder needs. One that is missing has the value of the class.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the features, and of the vector.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Most tokens of a text.
    pub max_position_embeddings: usize,
    /// Of the norms.
    pub layer_norm_eps: f64,
    hidden_act: Activation,
    /// The token whose features are the vector; `None`: the last.
    eos_token_id: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::QuickGelu,
            eos_token_id: Some(49407),
        }
    }
}

/// In old files, whatever token has the largest number: the end of a text in CLIP's vocabulary.
const LARGEST: u32 = 2;

impl Config {
    /// The configuration that weights belong to, by their shapes; what shapes do not say is CLIP-L's, or that of `like`
    /// if it is as wide.
    pub fn from_weights(source: &dyn Source, like: Option<&Config>) -> Result<Self> {
        let prefix = if source.shape("final_layer_norm.weight").is_some() { "" } else { "text_model." };
        let of = |name: &str| format!("{prefix}{name}");
        let [vocab_size, hidden_size] = dims(source, &of("embeddings.token_embedding.weight"))?;
        let [max_position_embeddings, _] = dims(source, &of("embeddings.position_embedding.weight"))?;
        let [intermediate_size, _] = dims(source, &of("encoder.layers.0.mlp.fc1.weight"))?;
        let like = like.filter(|like| like.hidden_size == hidden_size);
        Ok(Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: count(source, |i| of(&format!("encoder.layers.{i}.mlp.fc1.weight"))),
            num_attention_heads: like.map_or(hidden_size / HEAD_DIM, |like| like.num_attention_heads),
            max_position_embeddings,
            layer_norm_eps: like.map_or(1e-5, |like| like.layer_norm_eps),
            hidden_act: like.map_or(Activation::QuickGelu, |like| like.hidden_act),
            eos_token_id: like.and_then(|like| like.eos_token_id),
        })
    }

    fn check(&self) -> Result<()> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::Config {
                place: PLACE,
                field: "num_attention_heads",
                found: self.num_attention_heads.to_string(),
                expected: "a divisor of hidden_size".to_string(),
            });
        }
        Ok(())
    }
}

/// Keys of `CLIPTextConfig`.
const KEYS: Keys = &[
    (&["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"], Rule::Read),
    (&["max_position_embeddings", "layer_norm_eps", "hidden_act", "eos_token_id"], Rule::Read),
    (&["projection_dim"], Rule::Any), // of what is not read: the vector is taken before it
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
            PLACE,
            "num_hidden_layers",
            self.num_hidden_layers,
            Self::from_weights(source, Some(self))?.num_hidden_layers,
        )
    }
}

/// The encoder.
pub struct ClipText {
    token_embedding: Matrix,    // (vocab, hidden)
    position_embedding: Tensor, // (positions, hidden)
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    config: Config,
    device: Device,
}

impl ClipText {
    /// Reads the weights of `CLIPTextModel`, with `text_model.` before their names or without.
    pub fn new(config: &Config, w: Weights) -> Result<Self> {
        config.check()?;
        let w = if w.contains("final_layer_norm.weight") { w } else { w.pp("text_model") };
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let shape = LayerShape {
            hidden,
            middle: config.intermediate_size,
            heads: config.num_attention_heads,
            eps,
            activation: config.hidden_act,
        };
        let embeddings = w.pp("embeddings");
        let positions = [config.max_position_embeddings, hidden];
        let layer = |i| Layer::new(shape, w.pp("encoder").pp("layers").pp(i));
        Ok(ClipText {
            token_embedding: embeddings.pp("token_embedding").matrix("weight", &[config.vocab_size, hidden])?,
            position_embedding: embeddings.pp("position_embedding").f32("weight", &positions)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::affine(hidden, eps, w.pp("final_layer_norm"))?,
            config: config.clone(),
            device: w.device().clone(),
        })
    }

    /// Where a text ends; a text without its end counts as ended by its first token, as in the reference.
    fn end(&self, ids: &[u32]) -> usize {
        let of = |end: u32| ids.iter().position(|&id| id == end).unwrap_or(0);
        match self.config.eos_token_id {
            None => ids.len() - 1,
            Some(LARGEST) => of(ids.iter().max().copied().unwrap_or(0)),
            Some(end) => of(end),
        }
    }

    /// The vector of a text: the features of the token that ends it. What would stand behind it as padding it does not
    /// see.
    ///
    /// * `ids` - from the token that begins a text to the one that ends it
    ///
    /// Returns (1, hidden_size), f32.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let n = ids.len();
        if n == 0 || n > self.config.max_position_embeddings {
            return Err(Error::Input {
                what: "tokens of the prompt",
                expected: format!("1 to {} (max_position_embeddings of {PLACE})", self.config.max_position_embeddings),
                found: n.to_string(),
            });
        }
        check_ids(ids, self.config.vocab_size)?;
        let mask = causal_mask(self.config.num_attention_heads, n, &self.device)?;
        let mut x = (self.token_embedding.rows(ids)? + self.position_embedding.narrow(0, 0, n)?)?; // (n, hidden)
        for layer in &self.layers {
            x = layer.forward(&x, Some(&mask))?;
        }
        self.final_layer_norm.forward(&x.narrow(0, self.end(ids), 1)?)
    }
}

//! LLaMA (Touvron et al. 2023, arXiv 2302.13971) as a text encoder: the hidden states of a layer before the last.
//!
//! Names and arithmetic follow transformers `LlamaModel`.

use candle_core::{Device, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};
use navicache_kernels::{residual, silu};
use serde::Deserialize;

use super::check_ids;
use crate::keys::{Configuration, Keys, OF_TRANSFORMERS, Rule};
use crate::nn::{Linear, RmsNorm, attention, causal_mask, split_heads};
use crate::weights::{count, covers, dims};
use crate::{Error, Matrix, Precision, Result, Source, Weights};

const PLACE: &str = "text_encoder/config.json";

/// The fields of `config.json` that the encoder needs.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream, and of the output.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Heads that keys and values have; several heads of queries share one.
    pub num_key_value_heads: usize,
    /// Channels of a head, where they are not the width over the heads.
    pub head_dim: Option<usize>,
    /// Of the norms.
    pub rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    hidden_act: String,
    #[serde(skip)]
    pairs: Pairs,
}

/// Which channels of a head the rotary embedding turns together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pairs {
    /// The first of each half, the second of each half, ...
    #[default]
    Halves,
    /// Neighbours: the rows of queries and keys stand so in GGUF files.
    Neighbours,
}

/// How newer configurations have it.
#[derive(Debug, Clone, Deserialize)]
struct RopeParameters {
    rope_theta: f64,
    rope_type: String,
}

/// Channels of a head of the published models, where no configuration says them.
const HEAD_DIM: usize = 128;

impl Config {
    /// The configuration that weights belong to, by their shapes; what shapes do not say is LLaMA-3's, or that of
    /// `like` if it is as wide.
    pub fn from_weights(source: &dyn Source, like: Option<&Config>, pairs: Pairs) -> Result<Self> {
        let prefix = if source.shape("embed_tokens.weight").is_some() { "" } else { "model." };
        let of = |name: &str| format!("{prefix}{name}");
        let [vocab_size, hidden_size] = dims(source, &of("embed_tokens.weight"))?;
        let [inner, _] = dims(source, &of("layers.0.self_attn.q_proj.weight"))?;
        let [shared, _] = dims(source, &of("layers.0.self_attn.k_proj.weight"))?;
        let [intermediate_size, _] = dims(source, &of("layers.0.mlp.gate_proj.weight"))?;
        let like = like.filter(|like| like.hidden_size == hidden_size);
        let head_dim = like.map_or(HEAD_DIM, Config::head_dim).max(1);
        Ok(Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: count(source, |i| of(&format!("layers.{i}.self_attn.q_proj.weight"))),
            num_attention_heads: inner / head_dim,
            num_key_value_heads: shared / head_dim,
            head_dim: Some(head_dim),
            rms_norm_eps: like.map_or(1e-5, |like| like.rms_norm_eps),
            rope_theta: Some(like.map_or(500_000.0, Config::theta)),
            rope_parameters: None,
            hidden_act: "silu".to_string(),
            pairs,
        })
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn theta(&self) -> f64 {
        let newer = self.rope_parameters.as_ref().map(|parameters| parameters.rope_theta);
        newer.or(self.rope_theta).unwrap_or(10000.0)
    }

    fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: PLACE, field, found, expected: expected.to_string() })
        };
        if self.hidden_act != "silu" {
            return refuse("hidden_act", self.hidden_act.clone(), "silu");
        }
        if let Some(parameters) = &self.rope_parameters
            && parameters.rope_type != "default"
        {
            return refuse("rope_parameters.rope_type", parameters.rope_type.clone(), "default");
        }
        if self.num_attention_heads == 0 || self.num_hidden_layers == 0 {
            let found = format!("{}, {}", self.num_attention_heads, self.num_hidden_layers);
            return refuse("num_attention_heads, num_hidden_layers", found, "more than 0");
        }
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse(
                "num_key_value_heads",
                self.num_key_value_heads.to_string(),
                "a divisor of num_attention_heads",
            );
        }
        if self.head_dim() == 0 || !self.head_dim().is_multiple_of(2) {
            return refuse("head_dim", self.head_dim().to_string(), "an even number");
        }
        Ok(())
    }
}

/// Keys of `LlamaConfig`.
const KEYS: Keys = &[
    (&["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"], Rule::Read),
    (&["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "hidden_act"], Rule::Read),
    (
        &["rope_parameters"],
        Rule::Object(&[
            (&["rope_theta", "rope_type"], Rule::Read),
            (&["partial_rotary_factor"], Rule::Any), // of other types
        ]),
    ),
    (&["rope_scaling"], Rule::Only(&["null", r#"{"rope_type": "default"}"#, r#"{"type": "default"}"#])),
    (&["attention_bias", "mlp_bias"], Rule::Only(&["false"])),
    (&["max_position_embeddings"], Rule::Any), // a text is shorter
    (&["pretraining_tp"], Rule::Any),          // sums in another order
];

impl Configuration for Config {
    const NAMED_BY: &'static str = "model_type";
    const KEYS: &'static [Keys] = &[KEYS, OF_TRANSFORMERS];

    fn fits(&self, source: &dyn Source) -> bool {
        Self::from_weights(source, None, self.pairs).is_ok_and(|found| found.hidden_size == self.hidden_size)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        covers(
            PLACE,
            "num_hidden_layers",
            self.num_hidden_layers,
            Self::from_weights(source, Some(self), self.pairs)?.num_hidden_layers,
        )
    }
}

/// The encoder, without the layers after the one whose hidden states are taken.
pub struct Llama {
    embed_tokens: Matrix, // (vocab, hidden)
    layers: Vec<Layer>,
    config: Config,
    device: Device,
}

impl Llama {
    /// Reads the weights of `LlamaModel`, with `model.` before their names or without. `skipped`: layers at the end
    /// that do not run.
    pub fn new(config: &Config, skipped: usize, w: Weights) -> Result<Self> {
        config.check()?;
        let w = if w.contains("embed_tokens.weight") { w } else { w.pp("model") };
        let layer = |i| Layer::new(config, w.pp("layers").pp(i));
        Ok(Llama {
            embed_tokens: w.pp("embed_tokens").matrix("weight", &[config.vocab_size, config.hidden_size])?,
            layers: (0..config.num_hidden_layers.saturating_sub(skipped)).map(layer).collect::<Result<_>>()?,
            config: config.clone(),
            device: w.device().clone(),
        })
    }

    /// Hidden states of a text's token ids. Nothing is padded: no token sees a later one, so padding would change
    /// nothing.
    /// // (1, ids, hidden_size), f32
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.config.vocab_size)?;
        let (n, half) = (ids.len(), self.config.head_dim() / 2);
        let theta = self.config.theta();
        let angle = |i: usize| (i / half) as f32 / theta.powf((i % half) as f64 / half as f64) as f32;
        let table = |f: fn(f32) -> f32| {
            Tensor::from_vec((0..n * half).map(|i| f(angle(i))).collect::<Vec<_>>(), (n, half), &self.device)
        };
        let rotations = (table(f32::cos)?, table(f32::sin)?);
        let mask = causal_mask(self.config.num_attention_heads, n, &self.device)?;
        let mut x = self.embed_tokens.rows(ids)?; // (n, hidden)
        for layer in &self.layers {
            x = layer.forward(&x, &rotations, &mask)?;
        }
        Ok(x.unsqueeze(0)?)
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    pairs: Pairs,
}

impl Layer {
    fn new(config: &Config, w: Weights) -> Result<Self> {
        let (hidden, middle, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim());
        let (inner, shared) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let (attn, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        Ok(Layer {
            input_layernorm: RmsNorm::new(hidden, config.rms_norm_eps, w.pp("input_layernorm"))?,
            q_proj: Linear::without_bias(hidden, inner, attn.pp("q_proj"))?,
            k_proj: Linear::without_bias(hidden, shared, attn.pp("k_proj"))?,
            v_proj: Linear::without_bias(hidden, shared, attn.pp("v_proj"))?,
            o_proj: Linear::without_bias(inner, hidden, attn.pp("o_proj"))?,
            post_attention_layernorm: RmsNorm::new(hidden, config.rms_norm_eps, w.pp("post_attention_layernorm"))?,
            gate_proj: Linear::without_bias(hidden, middle, mlp.pp("gate_proj"))?,
            up_proj: Linear::without_bias(hidden, middle, mlp.pp("up_proj"))?,
            down_proj: Linear::without_bias(middle, hidden, mlp.pp("down_proj"))?,
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            head_dim,
            pairs: config.pairs,
        })
    }

    fn forward(&self, x: &Tensor, (cos, sin): &(Tensor, Tensor), mask: &Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let h = self.input_layernorm.forward(x)?;
        let split = |layer: &Linear, heads: usize| split_heads(&layer.forward(&h)?, heads);
        let turn = if self.pairs == Pairs::Halves { rope } else { rope_i };
        let rotate = |x: Tensor| -> Result<Tensor> { Ok(turn(&x.unsqueeze(0)?.contiguous()?, cos, sin)?.squeeze(0)?) };
        // A head of keys and values serves several heads of queries in a row.
        let spread = |x: Tensor| -> Result<Tensor> {
            let times = self.heads / self.key_value_heads;
            let x = x.unsqueeze(1)?.broadcast_as((self.key_value_heads, times, n, self.head_dim))?;
            Ok(x.reshape((self.heads, n, self.head_dim))?)
        };
        let q = rotate(split(&self.q_proj, self.heads)?)?;
        let k = spread(rotate(split(&self.k_proj, self.key_value_heads)?)?)?;
        let v = spread(split(&self.v_proj, self.key_value_heads)?)?;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let mixed = attention(&q, &k, &v, scale, Some(mask), Precision::F32)?;
        let x = residual(x, &self.o_proj.forward(&mixed)?)?;
        let h = self.post_attention_layernorm.forward(&x)?;
        let h = (silu(&self.gate_proj.forward(&h)?)? * self.up_proj.forward(&h)?)?;
        Ok(residual(&x, &self.down_proj.forward(&h)?)?)
    }
}

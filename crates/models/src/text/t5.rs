//! T5 v1.1 encoder (Raffel et al. 2019, arXiv 1910.10683), whose first block has a relative position bias that serves
//! all, and UMT5 (Chung et al. 2023, arXiv 2304.09151), where every block has its own.
//!
//! Names and arithmetic follow transformers `T5EncoderModel` and `UMT5EncoderModel`.

use candle_core::{Device, Tensor};
use navicache_kernels::residual;
use serde::Deserialize;

use super::check_ids;
use crate::keys::{Configuration, Keys, OF_TRANSFORMERS, Rule};
use crate::nn::{Linear, RmsNorm, attention, split_heads};
use crate::weights::{count, covers, dims};
use crate::{Error, Matrix, Precision, Result, Source, Weights};

const PLACE: &str = "text_encoder/config.json";

/// The fields of `config.json` that the encoder needs.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    model_type: Option<String>,
    feed_forward_proj: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream, and of the output.
    pub d_model: usize,
    /// Channels of a head.
    pub d_kv: usize,
    /// Width of the feed-forward network.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Distances that the position bias tells apart.
    #[serde(default = "published_buckets")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which all are one.
    #[serde(default = "published_distance")]
    pub relative_attention_max_distance: usize,
    /// Of the norms.
    #[serde(default = "published_epsilon")]
    pub layer_norm_epsilon: f64,
}

fn published_buckets() -> usize {
    32
}

fn published_distance() -> usize {
    128
}

fn published_epsilon() -> f64 {
    1e-6
}

impl Config {
    /// About the most bytes that encoding so many tokens takes beside the weights: activations, scores and one widened
    /// matrix.
    pub fn encode_bytes(&self, tokens: usize) -> u64 {
        const F32: usize = 4;
        let width = 6 * self.d_model + 2 * self.d_ff + self.num_heads * tokens;
        ((tokens * width + self.d_model * self.d_ff) * F32) as u64
    }

    /// The configuration that weights belong to, by their shapes.
    pub fn from_weights(source: &dyn Source) -> Result<Self> {
        let layer = "encoder.block.0.layer";
        let [vocab_size, d_model] =
            dims(source, "shared.weight").or_else(|_| dims(source, "encoder.embed_tokens.weight"))?;
        let [inner, _] = dims(source, &format!("{layer}.0.SelfAttention.q.weight"))?;
        let [buckets, num_heads] = dims(source, &format!("{layer}.0.SelfAttention.relative_attention_bias.weight"))?;
        let [d_ff, _] = dims(source, &format!("{layer}.1.DenseReluDense.wi_0.weight"))?;
        Ok(Config {
            model_type: None,
            feed_forward_proj: "gated-gelu".to_string(),
            vocab_size,
            d_model,
            d_kv: inner / num_heads.max(1),
            d_ff,
            num_layers: count(source, |i| format!("encoder.block.{i}.layer.0.SelfAttention.q.weight")),
            num_heads,
            relative_attention_num_buckets: buckets,
            relative_attention_max_distance: published_distance(),
            layer_norm_epsilon: published_epsilon(),
        })
    }

    fn check(&self) -> Result<()> {
        let refuse = |field, found: String, expected: &str| {
            Err(Error::Config { place: PLACE, field, found, expected: expected.to_string() })
        };
        if let Some(other) = self.model_type.as_deref().filter(|kind| !["t5", "umt5"].contains(kind)) {
            return refuse("model_type", other.to_string(), "t5 or umt5");
        }
        if self.feed_forward_proj != "gated-gelu" {
            return refuse("feed_forward_proj", self.feed_forward_proj.clone(), "gated-gelu");
        }
        let buckets = self.relative_attention_num_buckets;
        if buckets < 4 || self.relative_attention_max_distance <= buckets / 4 {
            let expected = "at least 4, and less than four times relative_attention_max_distance";
            return refuse("relative_attention_num_buckets", buckets.to_string(), expected);
        }
        Ok(())
    }

    /// Whether the first block's position bias serves all. A configuration that does not say leaves it to the weights.
    fn shares_bias(&self, w: &Weights) -> bool {
        match self.model_type.as_deref() {
            Some(kind) => kind == "t5",
            None => !w.contains("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        }
    }
}

/// Keys of `T5Config` and `UMT5Config`.
const KEYS: Keys = &[
    (&["model_type", "feed_forward_proj", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers"], Rule::Read),
    (&["num_heads", "relative_attention_num_buckets", "relative_attention_max_distance"], Rule::Read),
    (&["layer_norm_epsilon"], Rule::Read),
    (&["dense_act_fn"], Rule::Only(&["\"gelu_new\""])),
    (&["is_gated_act"], Rule::Only(&["true"])),
    (&["num_decoder_layers", "scale_decoder_outputs"], Rule::Any), // there is no decoder
    (&["dropout_rate", "classifier_dropout"], Rule::Any),          // of training
    (&["n_positions", "scalable_attention"], Rule::Any),           // of older files; transformers reads neither
];

impl Configuration for Config {
    const NAMED_BY: &'static str = "model_type";
    const KEYS: &'static [Keys] = &[KEYS, OF_TRANSFORMERS];

    fn fits(&self, source: &dyn Source) -> bool {
        Self::from_weights(source).is_ok_and(|found| found.d_model == self.d_model)
    }

    fn agree(&self, source: &dyn Source) -> Result<()> {
        self.check()?;
        covers(PLACE, "num_layers", self.num_layers, Self::from_weights(source)?.num_layers)
    }
}

/// The encoder.
pub struct T5 {
    shared: Matrix, // (vocab, d)
    blocks: Vec<Block>,
    final_layer_norm: RmsNorm,
    config: Config,
    device: Device,
}

struct Block {
    attention_norm: RmsNorm,
    attention: SelfAttention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    relative_attention_bias: Tensor, // (buckets, heads)
    heads: usize,
}

struct FeedForward {
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5 {
    /// Reads the weights of `T5EncoderModel` or `UMT5EncoderModel`.
    pub fn new(config: &Config, w: Weights) -> Result<Self> {
        config.check()?;
        let embedding = ["shared", "encoder.embed_tokens"].map(|name| w.pp(name));
        let embedding = embedding.iter().find(|w| w.contains("weight")).unwrap_or(&embedding[0]);
        let shared = embedding.matrix("weight", &[config.vocab_size, config.d_model])?;
        let encoder = w.pp("encoder");
        let shares_bias = config.shares_bias(&w);
        let mut blocks: Vec<Block> = Vec::new();
        for i in 0..config.num_layers {
            let of_the_first =
                blocks.first().filter(|_| shares_bias).map(|b| b.attention.relative_attention_bias.clone());
            blocks.push(Block::new(config, of_the_first, encoder.pp("block").pp(i).pp("layer"))?);
        }
        let final_layer_norm = RmsNorm::new(config.d_model, config.layer_norm_epsilon, encoder.pp("final_layer_norm"))?;
        Ok(T5 { shared, blocks, final_layer_norm, config: config.clone(), device: w.device().clone() })
    }

    /// Hidden states of a prompt's token ids. Nothing is padded, so nothing needs a mask. // (1, ids, d_model), f32
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.config.vocab_size)?;
        let mut x = self.shared.rows(ids)?; // (n, d)
        let buckets = self.buckets(ids.len())?; // (n * n)
        for block in &self.blocks {
            x = block.forward(&x, &buckets)?;
        }
        Ok(self.final_layer_norm.forward(&x)?.unsqueeze(0)?)
    }

    /// Bucket of every pair's distance, one row for each query. // (n * n)
    fn buckets(&self, n: usize) -> Result<Tensor> {
        let (buckets, farthest) =
            (self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance);
        let all: Vec<u32> = (0..n)
            .flat_map(|query| (0..n).map(move |key| bucket(key as i64 - query as i64, buckets, farthest)))
            .collect();
        Ok(Tensor::from_vec(all, n * n, &self.device)?)
    }
}

/// Half of the buckets for each direction; half of those one distance each, the rest in logarithmic steps up to
/// `farthest`. In f32 as in the reference: a logarithm at the edge of a bucket must fall to the same side.
fn bucket(distance: i64, buckets: usize, farthest: usize) -> u32 {
    let half = buckets / 2;
    let side = if distance > 0 { half } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let exact = half / 2;
    let within = if distance < exact {
        distance
    } else {
        let log = (distance as f32 / exact as f32).ln() / (farthest as f64 / exact as f64).ln() as f32;
        (exact + (log * (half - exact) as f32) as usize).min(half - 1)
    };
    (side + within) as u32
}

impl Block {
    /// `bias`: of another block, if this one has none of its own.
    fn new(config: &Config, bias: Option<Tensor>, w: Weights) -> Result<Self> {
        let norm = |i: usize| RmsNorm::new(config.d_model, config.layer_norm_epsilon, w.pp(i).pp("layer_norm"));
        Ok(Block {
            attention_norm: norm(0)?,
            attention: SelfAttention::new(config, bias, w.pp(0).pp("SelfAttention"))?,
            feed_forward_norm: norm(1)?,
            feed_forward: FeedForward::new(config, w.pp(1).pp("DenseReluDense"))?,
        })
    }

    fn forward(&self, x: &Tensor, buckets: &Tensor) -> Result<Tensor> {
        let x = residual(x, &self.attention.forward(&self.attention_norm.forward(x)?, buckets)?)?;
        Ok(residual(&x, &self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?)?)?)
    }
}

impl SelfAttention {
    fn new(config: &Config, bias: Option<Tensor>, w: Weights) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let inward = |name: &str| Linear::without_bias(config.d_model, inner, w.pp(name));
        let table = [config.relative_attention_num_buckets, config.num_heads];
        Ok(SelfAttention {
            q: inward("q")?,
            k: inward("k")?,
            v: inward("v")?,
            o: Linear::without_bias(inner, config.d_model, w.pp("o"))?,
            relative_attention_bias: match bias {
                Some(bias) => bias,
                None => w.f32("relative_attention_bias.weight", &table)?,
            },
            heads: config.num_heads,
        })
    }

    /// T5 does not scale its scores.
    fn forward(&self, x: &Tensor, buckets: &Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let bias = self.relative_attention_bias.index_select(buckets, 0)?; // (n * n, heads)
        let bias = bias.t()?.reshape((self.heads, n, n))?;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|layer| split_heads(&layer.forward(x)?, self.heads));
        self.o.forward(&attention(&q?, &k?, &v?, 1.0, Some(&bias), Precision::F32)?)
    }
}

impl FeedForward {
    fn new(config: &Config, w: Weights) -> Result<Self> {
        Ok(FeedForward {
            wi_0: Linear::without_bias(config.d_model, config.d_ff, w.pp("wi_0"))?,
            wi_1: Linear::without_bias(config.d_model, config.d_ff, w.pp("wi_1"))?,
            wo: Linear::without_bias(config.d_ff, config.d_model, w.pp("wo"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.wo.forward(&(self.wi_0.forward_gelu(x)? * self.wi_1.forward(x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_of_the_published_configuration() {
        // transformers 5.23 UMT5Attention._relative_position_bucket, 32 buckets up to 128
        let distances = [-200, -128, -127, -64, -16, -12, -8, -7, -1, 0, 1, 7, 8, 9, 11, 12, 16, 23, 45, 91, 127, 128];
        let expected = [15, 15, 15, 14, 10, 9, 8, 7, 1, 0, 17, 23, 24, 24, 24, 25, 26, 27, 28, 31, 31, 31];
        assert_eq!(distances.map(|d| bucket(d, 32, 128)), expected);
    }
}

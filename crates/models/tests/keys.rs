//! Keys of `config.json`: whatever changes what the reference computes is read, or refused by name
//! (`tools/golden/config_keys.py`).

use navicache_models::keys::{Described, read};
use navicache_models::{Configuration, cogvideox, hunyuan, image, text, wan};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Golden {
    class: String,
    file: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    value: Value,
    effect: String,
}

/// What is said of a file: what was read, or the reason why it is refused.
type Said = Result<(String, Vec<String>), String>;

fn said<C: Configuration + DeserializeOwned + std::fmt::Debug>(json: Value) -> Said {
    let Described { config, unknown } = read::<C>(json)?;
    // Weights that are not there are the one thing that may be wrong with it.
    match config.agree(&Nothing) {
        Err(error @ navicache_models::Error::Config { .. }) => Err(error.to_string()),
        _ => Ok((format!("{config:?}"), unknown)),
    }
}

struct Nothing;

impl navicache_models::Source for Nothing {
    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }

    fn load(
        &self,
        name: &str,
        _: Option<candle_core::DType>,
        _: &candle_core::Device,
    ) -> navicache_models::Result<candle_core::Tensor> {
        let (name, place) = (name.to_string(), self.place(name));
        Err(navicache_models::Error::MissingWeight { name, expected: Vec::new(), place })
    }

    fn place(&self, _: &str) -> String {
        "nowhere".to_string()
    }
}

fn of_class(class: &str, json: Value) -> Said {
    match class {
        "WanTransformer3DModel" => said::<wan::TransformerConfig>(json),
        "AutoencoderKLWan" => said::<wan::VaeConfig>(json),
        "HunyuanVideoTransformer3DModel" => said::<hunyuan::TransformerConfig>(json),
        "AutoencoderKLHunyuanVideo" => said::<hunyuan::VaeConfig>(json),
        "CogVideoXTransformer3DModel" => said::<cogvideox::TransformerConfig>(json),
        "AutoencoderKLCogVideoX" => said::<cogvideox::VaeConfig>(json),
        "T5Config" | "UMT5Config" => said::<text::t5::Config>(json),
        "LlamaConfig" => said::<text::llama::Config>(json),
        "CLIPTextConfig" => said::<text::clip::Config>(json),
        "CLIPVisionConfig" => said::<image::clip::Config>(json),
        other => panic!("{other}"),
    }
}

#[test]
fn every_key_is_understood_or_refused() {
    let golden: Vec<Golden> = serde_json::from_str(include_str!("golden/config_keys.json")).unwrap();
    assert_eq!(golden.len(), 11);
    for Golden { class, file, cases } in golden {
        let (base, unknown) = of_class(&class, file.clone().into()).unwrap_or_else(|e| panic!("{class}: {e}"));
        assert_eq!(unknown, [""; 0], "{class}");
        assert!(cases.len() >= 12, "{class}");
        for Case { key, value, effect } in cases {
            let mut changed = file.clone();
            changed.insert(key.clone(), value.clone());
            let found = of_class(&class, changed.into());
            let what = format!("{class} {key} {value}: {effect}, {found:?}");
            match (effect.as_str(), found) {
                ("refused", _) | ("same", Ok(_)) => {}
                ("same", Err(_)) => assert!(REFUSED_AS_WELL.contains(&key.as_str()), "{what}"),
                (_, Ok((found, _))) => assert!(found != base || SAID_BY_WEIGHTS.contains(&key.as_str()), "{what}"),
                (_, Err(error)) => assert!(error.contains(&key), "{what}"),
            }
        }
    }
}

/// They make no difference to this model alone, but to what the pipeline does with it, or where another key is absent.
const REFUSED_AS_WELL: [&str; 10] = [
    "qk_norm", // WanTransformer3DModel has one, whatever is asked for
    "pos_embed_seq_len",
    "image_condition_type",
    "temporal_compression_ratio",
    "scale_factor_spatial",
    "scale_factor_temporal",
    "latents_mean",
    "latents_std",
    "shift_factor",
    "feed_forward_proj", // `dense_act_fn` counts where both are there
];
/// Whether there is a weight, they say; the weights do.
const SAID_BY_WEIGHTS: [&str; 1] = ["patch_bias"];

#[test]
fn keys_that_nobody_knows_are_named() {
    let vae = json!({"_class_name": "AutoencoderKLWan", "vae_scale": 2, "dropout": 0.1});
    assert_eq!(read::<wan::VaeConfig>(vae).unwrap().unknown, ["vae_scale"]);
    let vae = json!({"vae_temporal": {"type": "VAE_Temporal", "dims": 3}});
    assert_eq!(read::<navicache_models::opensora::VaeConfig>(vae).unwrap().unknown, ["vae_temporal.dims"]);
    for (json, expected) in [
        (json!([1]), "expected a JSON object"),
        (json!({"vae_temporal": 3}), "vae_temporal: expected an object, found 3"),
        (json!({"vae_temporal": {"filters": "many"}}), "vae_temporal: invalid type: string \"many\""),
    ] {
        let error = read::<navicache_models::opensora::VaeConfig>(json).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

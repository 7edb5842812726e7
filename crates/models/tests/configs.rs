//! Configurations with any numbers in them: read, checked, and refused where they cannot be; nothing panics.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use navicache_models::{Configuration, Error, Result, Source, cogvideox, hunyuan, image, opensora, text, wan};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Weights of which there are none.
struct Nothing;

impl Source for Nothing {
    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }

    fn load(&self, name: &str, _: Option<DType>, _: &Device) -> Result<Tensor> {
        Err(Error::MissingWeight { name: name.to_string(), expected: Vec::new(), place: self.place(name) })
    }

    fn place(&self, _: &str) -> String {
        "nowhere".to_string()
    }
}

fn read(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// How many configurations were tried.
fn try_all<C: DeserializeOwned + Configuration>(config: Value) -> usize {
    let plain = serde_json::from_value::<C>(config.clone()).unwrap().agree(&Nothing).unwrap_err();
    assert!(
        !matches!(plain, Error::Config { .. }),
        "there is nothing wrong with it but that weights are missing: {plain}"
    );
    let mut tried = 0;
    let pointers = numbers(&config, String::new());
    for pointer in &pointers {
        for value in [json!(0), json!(1), json!(3), json!(1u64 << 31), json!(1u64 << 53), json!(u64::MAX), json!(-1.5)]
        {
            let mut changed = config.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            if let Ok(config) = serde_json::from_value::<C>(changed) {
                config.agree(&Nothing).unwrap_err();
                tried += 1;
            }
        }
    }
    assert!(tried > 3 * pointers.len(), "{tried}");
    tried
}

/// Where numbers stand.
fn numbers(value: &Value, at: String) -> Vec<String> {
    match value {
        Value::Number(_) => vec![at],
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, item)| numbers(item, format!("{at}/{i}"))).collect()
        }
        Value::Object(fields) => fields.iter().flat_map(|(key, item)| numbers(item, format!("{at}/{key}"))).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn configurations_of_any_numbers_do_not_panic() {
    let (wan, hunyuan_video) = ("engine/tests/golden/layouts", "engine/tests/golden/hunyuan");
    let of = |folder: &str, part: &str| read(&format!("{folder}/{part}/config.json"));
    let mut tried = 0;
    tried += try_all::<wan::TransformerConfig>(of(wan, "transformer"));
    tried += try_all::<wan::VaeConfig>(of(wan, "vae"));
    tried += try_all::<text::t5::Config>(of(wan, "text_encoder"));
    tried += try_all::<image::clip::Config>(of(wan, "image_encoder"));
    tried += try_all::<hunyuan::TransformerConfig>(of(hunyuan_video, "transformer"));
    tried += try_all::<hunyuan::VaeConfig>(of(hunyuan_video, "vae"));
    tried += try_all::<text::llama::Config>(of(hunyuan_video, "text_encoder"));
    tried += try_all::<text::clip::Config>(of(hunyuan_video, "text_encoder_2"));
    let mut sora = read("models/tests/golden/opensora/configs.json");
    tried += try_all::<opensora::TransformerConfig>(sora["transformer"].take());
    let of_cogvideox = "engine/tests/golden/cogvideox";
    for part in ["transformer_2b", "transformer_5b", "transformer_5b_i2v", "transformer_15", "transformer_15_i2v"] {
        tried += try_all::<cogvideox::TransformerConfig>(of(of_cogvideox, part));
    }
    tried += try_all::<cogvideox::VaeConfig>(of(of_cogvideox, "vae"));
    assert!(tried > 500, "{tried}");
}

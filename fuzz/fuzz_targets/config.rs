//! `config.json` of every component: read, and compared with weights that are not there.
#![no_main]

use candle_core::{DType, Device, Tensor};
use navicache_models::{Configuration, Error, Result, Source, cogvideox, hunyuan, image, keys, opensora, text, wan};
use serde::de::DeserializeOwned;
use serde_json::Value;

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

fn read<C: DeserializeOwned + Configuration>(json: &Value) {
    if let Ok(described) = keys::read::<C>(json.clone()) {
        let _ = described.config.agree(&Nothing);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    read::<wan::AuthorsConfig>(&json);
    read::<cogvideox::TransformerConfig>(&json);
    read::<cogvideox::VaeConfig>(&json);
    read::<wan::TransformerConfig>(&json);
    read::<wan::VaeConfig>(&json);
    read::<hunyuan::TransformerConfig>(&json);
    read::<hunyuan::VaeConfig>(&json);
    read::<opensora::TransformerConfig>(&json);
    read::<opensora::VaeConfig>(&json);
    read::<text::t5::Config>(&json);
    read::<text::llama::Config>(&json);
    read::<text::clip::Config>(&json);
    read::<image::clip::Config>(&json);
});

//! `config.json` of every component: read, and compared with weights that are not there.
#![no_main]

use candle_core::{DType, Device, Tensor};
use navicache_models::{Configuration, Error, Result, Source, hunyuan, image, opensora, text, wan};
use serde::de::DeserializeOwned;

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

fn read<C: DeserializeOwned + Configuration>(bytes: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<C>(bytes) {
        let _ = config.agree(&Nothing);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read::<wan::TransformerConfig>(bytes);
    read::<wan::VaeConfig>(bytes);
    read::<hunyuan::TransformerConfig>(bytes);
    read::<hunyuan::VaeConfig>(bytes);
    read::<opensora::TransformerConfig>(bytes);
    read::<opensora::VaeConfig>(bytes);
    read::<text::t5::Config>(bytes);
    read::<text::llama::Config>(bytes);
    read::<text::clip::Config>(bytes);
    read::<image::clip::Config>(bytes);
});

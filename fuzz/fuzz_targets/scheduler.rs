//! `scheduler_config.json` and `model_index.json` of a Diffusers folder, and the index of shards.
#![no_main]

mod check;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let folder = check::folder();
    let (index, scheduler, shards) = (
        folder.join("model_index.json"),
        folder.join("scheduler/scheduler_config.json"),
        folder.join("transformer/diffusion_pytorch_model.safetensors.index.json"),
    );
    std::fs::create_dir_all(scheduler.parent().unwrap()).unwrap();
    std::fs::create_dir_all(shards.parent().unwrap()).unwrap();
    std::fs::write(&index, br#"{"_class_name": "WanPipeline"}"#).unwrap();
    let place = [&index, &scheduler, &shards][input.0 as usize % 3];
    std::fs::write(place, input.1).unwrap();
    let _ = navicache_engine::inspect::inspect(folder.to_str().unwrap());
});

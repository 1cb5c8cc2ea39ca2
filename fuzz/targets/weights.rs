//! Folders of weights and of adapters: config.json up to the first zero byte, safetensors after it.
#![no_main]

use keel::model::language_preset;
use keel::weights::{AdapterFolder, Folder, ImageSize, LinearModule, SubModel};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.iter().position(|byte| *byte == 0);
    let (config, rest) = bytes.split_at(cut.unwrap_or(bytes.len()));
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory can be written");
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).expect("memory can be written");
    };
    write("config.json", config);
    write("preprocessor_config.json", config);
    write("model.safetensors", rest.get(1..).unwrap_or_default());
    write("adapter_config.json", config);
    write(
        "adapter_model.safetensors",
        rest.get(1..).unwrap_or_default(),
    );
    if let Ok(adapters) = AdapterFolder::open(folder.path()) {
        let mut block = language_preset("qwen2.5-0.5b").expect("a preset").block();
        let module = |name: &str| (format!("model.layers.0.self_attn.{name}_proj"), 4);
        let modules = [LinearModule {
            name: "language.blocks.0.attention.qkv".to_owned(),
            tensors: ["q", "k", "v"].map(module).to_vec(),
        }];
        if let Ok(lora) = adapters.lora(&block, &modules) {
            block.lora = Some(lora);
            let _ = adapters.read(&block, &modules, &mut |_, _| Ok(()));
        }
    }
    if let Ok(opened) = Folder::open(folder.path()) {
        let _ = opened.processor(ImageSize::Fixed(224));
        let _ = opened.processor(ImageSize::OfProcessor(518));
        let _ = SubModel::all(&opened);
        let _ = SubModel::connector(&opened);
    }
});

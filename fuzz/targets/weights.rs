//! Folders of weights: config.json up to the first zero byte, safetensors after it.
#![no_main]

use keel::weights::{Folder, ImageSize, SubModel};
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
    if let Ok(opened) = Folder::open(folder.path()) {
        let _ = opened.processor(ImageSize::Fixed(224));
        let _ = opened.processor(ImageSize::OfProcessor(518));
        let _ = SubModel::all(&opened);
        let _ = SubModel::connector(&opened);
    }
});

//! Weights in formats that Keel does not read: they are told for what they are, with the way to what it does.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value as Json};

use keel_base::error::Error;

/// Beginnings and endings of files' names, what they are, and the way forward.
const FORMATS: &[(&str, &str, &str, &str)] = &[
    (
        "",
        ".gguf",
        "weights in GGUF, the format of llama.cpp",
        "give the folder that they were converted from, with config.json and model.safetensors",
    ),
    (
        "open_clip_",
        ".safetensors",
        "weights of open_clip without their settings",
        "copy open_clip_config.json beside them",
    ),
    (
        "",
        ".bin",
        "weights pickled by PyTorch",
        SAVE_AS_SAFETENSORS,
    ),
    ("", ".pt", "weights pickled by PyTorch", SAVE_AS_SAFETENSORS),
    (
        "",
        ".pth",
        "weights pickled by PyTorch",
        SAVE_AS_SAFETENSORS,
    ),
    (
        "",
        ".ckpt",
        "weights pickled by PyTorch",
        SAVE_AS_SAFETENSORS,
    ),
    ("", ".h5", "weights of TensorFlow", SAVE_AS_SAFETENSORS),
    ("", ".msgpack", "weights of Flax", SAVE_AS_SAFETENSORS),
    ("", ".npz", "weights of JAX", SAVE_AS_SAFETENSORS),
    (
        "",
        ".onnx",
        "a graph in ONNX",
        "give the folder that it was exported from, with config.json and model.safetensors",
    ),
];

/// Pickles run code when they are read, so they are for the library that wrote them.
const SAVE_AS_SAFETENSORS: &str = "load them with the library that wrote them and save the model as safetensors \
    (save_pretrained in transformers)";

/// The format of a file by its name: what it is, and the way forward.
fn format_of(name: &str) -> Option<(&'static str, &'static str)> {
    let name = name.to_ascii_lowercase();
    let known = FORMATS.iter().find(|(beginning, ending, ..)| {
        name.starts_with(beginning) && name.ends_with(ending) && name != "training_args.bin"
    });
    known.map(|(_, _, what, way)| (*what, *way))
}

/// Why `path`, which is a file, is no folder of weights.
pub(super) fn file_instead_of_folder(path: &Path) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (what, way) = match format_of(&name).filter(|_| path.is_file()) {
        Some((what, way)) => (format!("holds {what}"), way),
        None if path.is_file() && name.ends_with(".safetensors") => (
            "is a file of a folder of weights".to_owned(),
            "give the folder, with config.json beside the file",
        ),
        None => (
            "is not a folder".to_owned(),
            "give a folder with config.json and model.safetensors",
        ),
    };
    Error::content(path.display(), what, way)
}

/// Why a folder without safetensors cannot be read, where it holds weights of another format: the first of them by name.
pub(super) fn other_weights(folder: &Path) -> Option<Error> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let found = |name: &String| format_of(name).map(|(what, way)| (name.clone(), what, way));
    let (name, what, way) = names.iter().find_map(found)?;
    let problem = format!("holds {what} ({name}), and no model.safetensors");
    Some(Error::content(folder.display(), problem, way))
}

/// How the numbers of a folder are quantised, in a few words, where `config.json` says it: `gptq, 4 bits`.
pub(super) fn quantisation(value: &Json) -> Option<String> {
    let settings = value.as_object().filter(|map| !map.is_empty())?;
    let text = |key: &str| settings.get(key).and_then(Json::as_str);
    let method = text("quant_method").or(text("mode")).unwrap_or("quantised");
    let width = bits(settings);
    Some(match width {
        Some(bits) => format!("{method}, {bits} bits"),
        None => method.to_owned(),
    })
}

fn bits(settings: &Map<String, Json>) -> Option<u64> {
    let is_on = |key: &str| settings.get(key).and_then(Json::as_bool) == Some(true);
    let said = ["bits", "w_bit", "weight_bits"]
        .iter()
        .find_map(|key| settings.get(*key)?.as_u64());
    // bitsandbytes has a switch for each width.
    said.or_else(|| is_on("load_in_4bit").then_some(4))
        .or_else(|| is_on("load_in_8bit").then_some(8))
}

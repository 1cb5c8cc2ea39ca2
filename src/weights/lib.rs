//! Hugging Face folders: what their settings and tensors mean for Keel's models.
//!
//! A folder is `config.json` with `model.safetensors`, or with shards and their index. Opening reads settings and headers;
//! values are read through a memory map, a piece at a time, when they are asked for.
#![deny(unsafe_code)]

mod families;
mod finder;
mod folder;
mod head;
mod language;
mod natural;
mod part;
mod positions;
mod processor;
mod settings;
mod values;
mod vision;
mod written;

pub use folder::{Folder, TensorPlace};
pub use natural::{
    VisionLayout, connector_tensors, language_config, language_tensors, processor_config,
    whole_config,
};
pub use part::{Aside, Part, Tower};
pub use processor::Processor;
pub use written::{Content, Written, write_tensors};

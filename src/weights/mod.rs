//! Hugging Face folders: what their settings and tensors mean for Keel's models.
//!
//! A folder is `config.json` with `model.safetensors`, or with shards and their index. Opening reads settings and headers;
//! values are read through a memory map, a piece at a time, when they are asked for.

mod families;
mod folder;
mod language;
mod part;
mod settings;
mod values;
mod vision;

pub use folder::{Folder, TensorPlace};
pub use part::{Aside, Part, Tower};

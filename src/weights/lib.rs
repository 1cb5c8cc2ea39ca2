//! Hugging Face folders: what their settings and tensors mean for Keel's models, and how models become such folders again.
//!
//! A folder is `config.json` with `model.safetensors`, or with shards and their index. Opening reads settings and headers;
//! values are read through a memory map, a piece at a time, when they are asked for. What is particular to a family of models
//! stands in one file of `families`, whose head says how one is added.
#![deny(unsafe_code)]

mod adapter;
mod families;
mod folder;
mod foreign_format;
mod head;
mod hf_config;
mod hf_export;
mod image_settings;
mod output_tensor;
mod pos_embed_interp;
mod processor;
mod recognise;
mod sub_model;
mod tensor_reader;
mod tensor_resolver;

pub use adapter::{AdapterFolder, LinearModule, adapter_tensors, write_adapters};
pub use families::{LengthLimit, connector_config, whole_config};
pub use folder::{Folder, OPEN_CLIP_CONFIG, TensorPlace, WHOLE};
pub use hf_export::{
    VisionLayout, connector_tensors, language_config, language_modules, language_tensors,
};
pub use output_tensor::{Content, OutputTensor, write_tensors};
pub use processor::{ImageSize, Processor, Resized, processor_config};
pub use recognise::{PartSettings, part_settings};
pub use sub_model::{FolderConnector, IgnoredTensors, SubModel, SubModelConfig};

//! The models: a vision tower, a text tower, a connector and a language model, written as functions that record ops.
//!
//! No model owns weights or gradients: it names parameters, the tape finds their places. The same code records training
//! steps, evaluation programs and the declaration that parameters are counted from.
#![deny(unsafe_code)]

mod batch_inputs;
mod block;
mod config;
mod connector;
mod conversation;
mod distillation;
mod init;
mod inputs;
mod language;
mod lora;
mod pattern;
mod presets;
mod regularisation;
mod scope;
mod text;
mod vision;
mod vision_head;
mod vlm_losses;

pub use batch_inputs::BatchInputs;
pub use block::{BlockConfig, MlpKind, NormKind, QkNorm};
pub use config::{
    Alignment, ConnectorConfig, LanguageConfig, LearnedPositions, ModelConfig, OUTPUT_LAYER,
    TeacherConfig, TextConfig, VisionConfig,
};
pub use connector::connector;
pub use distillation::{DISTILLATION, Distillation, DistillationLoss, TEACHER};
pub use init::{declare, initialise, initialise_one};
pub use inputs::{ModelInput, unfed};
pub use language::{
    LanguageHead, cached_rows, embed_tokens, language_head, language_step, language_trunk,
};
pub use lora::{LORA, LoraConfig, merge_adapters, packed_parts};
pub use pattern::ParameterPattern;
pub use presets::{LANGUAGE_PRESETS, VISION_PRESETS, language_preset, vision_preset};
pub use regularisation::{DROP_PATH, Regularisation, drop_path, keep_tokens};
pub use scope::Scope;
pub use text::text_tower;
pub use vision::{TowerFeatures, vision_layers, vision_tower};
pub use vision_head::{VisionHead, vision_head};
pub use vlm_losses::{
    ContrastivePair, Losses, NextToken, Objectives, contrasted_features,
    record_contrastive_features, record_losses, record_next_token, record_objectives,
    record_prompt, record_text_prompt, record_vision_language,
};

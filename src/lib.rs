//! Keel trains visual backbones for multimodal language models by gradual feature refinement.
#![deny(unsafe_code)]

pub mod data;
pub mod error;
pub mod executor;
pub mod launch;
pub mod ops;
pub mod plan;
pub mod program;
pub mod tape;
pub mod tensor;

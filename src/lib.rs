//! Keel trains visual backbones for multimodal language models by gradual feature refinement.
#![deny(unsafe_code)]

pub mod error;
pub mod tensor;

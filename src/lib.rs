//! Keel trains visual backbones for multimodal language models by gradual feature refinement.
#![deny(unsafe_code)]

pub mod cli;
pub mod data;
pub mod error;
pub mod eval;
pub mod executor;
pub mod kernels;
pub mod launch;
pub mod model;
pub mod ops;
pub mod plan;
pub mod program;
pub mod random;
pub mod report;
pub mod tape;
pub mod tensor;
pub mod train;
pub mod weights;

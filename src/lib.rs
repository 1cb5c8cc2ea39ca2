//! Keel trains visual backbones for multimodal language models by gradual feature refinement.
#![deny(unsafe_code)]

pub mod cli;
pub mod kernels;
pub mod report;
pub mod train;
pub mod weights;

pub use keel_engine::*;

//! The engine: everything below training, from tensors and kernels to models, data and measures.
#![deny(unsafe_code)]

pub mod data;
pub mod error;
pub mod eval;
pub mod executor;
pub mod launch;
pub mod model;
pub mod ops;
pub mod plan;
pub mod program;
pub mod random;
pub mod tape;
pub mod tensor;

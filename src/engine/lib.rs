//! The engine: tensors, the tape, programs and their plans, ops, and the executors that run them.
#![deny(unsafe_code)]

pub mod executor;
pub mod launch;
pub mod ops;
pub mod plan;
pub mod program;
pub mod tape;
pub mod tensor;

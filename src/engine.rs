//! The engine: the floors from evaluation down to tensors. What trains, reads weights and shows is in `lib.rs`, which has
//! these rooms, too.
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

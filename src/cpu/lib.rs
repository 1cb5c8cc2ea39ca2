//! The processor's arithmetic: vectors ([`simd`]), matrix products ([`matmul`]), elementwise and row-wise functions
//! ([`vector_math`]), sums over rows ([`reduce`]). It knows slices and shapes, nothing of tapes or ops, and imports nothing
//! of ours: the processor executor and the ops' kernels call it.
#![deny(unsafe_code)]

mod bf16_products;
pub mod matmul;
pub mod parallel;
mod peak;
pub mod reduce;
pub mod simd;
mod storage;
pub mod tile_unit;
pub mod vector_math;

pub use bf16_products::{
    Bf16Products, Refused, VARIABLE as BF16_PRODUCTS_VARIABLE, bf16_products, bf16_products_asked,
    bf16_products_of_environment, set_bf16_products,
};
pub use peak::{measure as measure_peak, measure_bandwidth, measure_bf16 as measure_bf16_peak};
pub use storage::{Stored, round, widen};

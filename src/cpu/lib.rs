//! The processor's arithmetic: vectors ([`simd`]), matrix products ([`matmul`]), elementwise and row-wise functions
//! ([`vector_math`]), sums over rows ([`reduce`]). It knows slices and shapes, nothing of tapes or ops, and imports nothing
//! of ours: the processor executor and the ops' kernels call it.
#![deny(unsafe_code)]

pub mod matmul;
pub mod parallel;
mod peak;
pub mod reduce;
pub mod simd;
pub mod vector_math;

pub use peak::{measure as measure_peak, measure_bandwidth};

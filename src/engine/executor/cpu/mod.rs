//! The processor as an executor: f32 kernels in Rust, all cores, no allocation while a step runs.
//!
//! [`keel_cpu::matmul`], [`keel_cpu::vector_math`] and [`keel_cpu::reduce`] are the computing primitives that ops call. Each
//! is deterministic: work is cut into tasks by shape alone, every element is written by one task and every reduction has a
//! fixed order, so that results are the same bits for any number of threads. None of them allocates.

mod session;

pub use session::CpuExecutor;

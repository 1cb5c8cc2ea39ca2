//! The processor as an executor: f32 kernels in Rust, all cores, no allocation while a step runs.

pub mod product;
mod session;

pub use session::CpuExecutor;

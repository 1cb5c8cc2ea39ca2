//! The GPU: runs programs on an NVIDIA device through the driver that is installed, which is loaded at run time and never
//! linked. Nothing here can panic because of what it finds there: [`probe`] says in one sentence why there is no GPU.
//!
//! The driver is spoken to through cudarc's thin layer. Launching is safe: arguments are checked against the kernel's
//! parameters as its source declares them, their number also against the image's, and every pointer comes from an arena of
//! known length.
#![allow(unsafe_code)]

#[cfg(all(feature = "cust", target_os = "linux"))]
pub mod cust;
mod executor;
mod gpu;
mod kernels;
mod launch;
mod memory;
mod probe;
mod session;
mod staging;

pub use executor::CudaExecutor;
pub use probe::{Found, probe, probe_driver};

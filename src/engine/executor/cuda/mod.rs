//! The GPU: runs programs on an NVIDIA device through the driver that is installed, which is loaded at run time and never
//! linked. Nothing here can panic because of what it finds there: [`probe`] says in one sentence why there is no GPU.
//!
//! The driver's functions are called through a table of this module's own, with the types of cudarc. Launching is safe: arguments are checked against the kernel's
//! parameters as its source declares them, their number also against the image's, and every pointer comes from an arena of
//! known length.
#![allow(unsafe_code)]

mod clock;
mod collectives;
#[cfg(all(feature = "cust", target_os = "linux"))]
pub mod cust;
mod driver;
mod executor;
mod gpu;
mod graph;
mod kernels;
mod launch;
mod memory;
mod probe;
mod session;
mod staging;

pub use executor::CudaExecutor;
pub use probe::{Found, probe, probe_driver, probe_ordinal};

//! Ranks as processes: how they are started, found and watched, and what moves their bytes.

mod control;
mod device;
mod environment;
mod gpu_runs;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod processes;
mod rounds;
mod runs;
mod simulate;
mod whole_runs;

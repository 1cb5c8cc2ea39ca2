//! Ranks as processes: how they are started, found and watched, and what moves their bytes.

mod control;
mod device;
mod environment;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod processes;
mod rounds;
mod runs;
mod simulate;

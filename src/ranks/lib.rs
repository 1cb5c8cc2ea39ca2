//! Several ranks that train one model: who they are, what they send one another, and in what order what they send is added.
//!
//! A rank computes on one device, or on a share of a processor. An [`Engine`] moves bytes between ranks and never adds: every
//! sum is an op of the program that receives its parts, in the order of [`order`]. So a result has the same bits whatever
//! engine, transport or topology moved its parts. Nothing here knows of programs.
#![deny(unsafe_code)]

mod board;
mod collective;
pub mod control;
pub mod join;
pub mod launch;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod order;
mod seat;
pub mod simulate;
mod world;

pub use collective::{Collective, Engine, Kind, Received, Sent, SharedEngine, Ticket, Votes};
pub use seat::Seat;
pub use world::World;

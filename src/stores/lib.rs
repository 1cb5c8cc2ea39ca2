//! Objects of object stores (`s3://`, `gs://`, `az://`, `http://`, `https://`) as bytes that are read by ranges.
//!
//! Whatever a store does, a read ends: every request has a time limit and is made again a few times, more slowly each time,
//! where trying again can help. An object is told by its size and by the tag that its store gives it; where either changes
//! while it is read, reading ends with an error. Nothing is written, and nothing is listed.
//!
//! What talks to stores is the crate `object_store`, with the credentials and endpoints of the environment that it documents.
//! It comes with the feature `network`; without it every address is refused by name.
#![deny(unsafe_code)]

mod address;
mod blocks;
mod client;
mod failure;
#[cfg(feature = "network")]
mod network;
mod object;
mod windows;

/// Whether this build can reach stores at all.
pub const HAS_NETWORK: bool = cfg!(feature = "network");

pub use address::{Address, Scheme, is_address, shown};
pub use blocks::Blocks;
pub use failure::{Failure, Result};
pub use object::Object;
pub use windows::Windows;

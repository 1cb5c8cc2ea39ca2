//! The formats that users bring, each read without trusting it.

pub mod archive;
pub mod benchmark;
pub mod census;
mod folder;
mod joined;
mod limits;
mod lines;
pub(crate) mod pair;
pub mod pairs;
mod parquet;
pub mod records;
mod shards;
pub mod skips;
pub mod sums;
mod table;
pub mod webdataset;

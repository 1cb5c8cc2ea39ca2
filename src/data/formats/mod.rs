//! The formats that users bring, each read without trusting it.

pub mod archive;
pub mod benchmark;
pub mod census;
pub mod digest;
mod files;
mod folder;
mod image_place;
mod joined;
mod limits;
mod lines;
pub(crate) mod pair;
pub mod pairs;
mod parquet;
mod record_text;
pub mod records;
pub(crate) mod remote;
mod rows;
mod shard_index;
mod shards;
pub mod skips;
pub mod split;
pub mod sums;
mod table;
mod turns;
pub mod webdataset;

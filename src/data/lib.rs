//! Image–text pairs: the embedded ones and the user's own, read without trusting any of them.
//!
//! Nothing here starts a process, opens a connection or writes a file.
#![deny(unsafe_code)]

pub mod archive;
pub mod augment;
pub mod batch;
pub mod benchmark;
pub mod captions;
pub mod census;
pub mod chat;
pub mod colours;
mod contained;
pub mod corpus;
pub mod corruption;
pub mod embedded;
pub mod eval_sets;
pub mod facts;
mod folder;
mod joined;
pub mod library;
mod lines;
pub mod mixture;
pub mod names;
pub mod packing;
pub mod pairs;
mod parquet;
pub mod photo;
pub mod picture;
pub mod prefetch;
pub mod prepare;
pub mod questions;
pub mod records;
pub mod resample;
pub mod scenes;
mod shards;
pub mod skips;
pub mod sprite;
pub mod sums;
mod table;
pub mod task;
pub mod tiles;
pub mod tokenizer;
pub mod webdataset;

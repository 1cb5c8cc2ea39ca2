//! Image–text pairs: the embedded ones and the user's own, read without trusting any of them.
//!
//! Nothing here starts a process, opens a connection or writes a file.

pub mod archive;
pub mod embedded;
mod folder;
mod lines;
pub mod pairs;
pub mod picture;
pub mod records;
pub mod resample;
pub mod skips;
pub mod webdataset;

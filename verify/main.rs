//! The one test binary.

mod data_embedded;
mod data_picture;
mod harness;
mod ops;
mod simt;

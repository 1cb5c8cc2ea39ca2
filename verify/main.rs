//! The one test binary.

mod harness;
mod ops;

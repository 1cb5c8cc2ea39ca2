//! What every package uses: the error type, seeded random numbers, files opened with care or mapped into memory.
#![deny(unsafe_code)]

pub mod error;
pub mod files;
pub mod mapped_file;
pub mod random;
pub mod units;

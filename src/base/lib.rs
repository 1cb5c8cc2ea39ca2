//! What every package uses: the clock, the error type, seeded random numbers, files opened with care or mapped into memory.
#![deny(unsafe_code)]

pub mod clock;
pub mod error;
pub mod files;
pub mod mapped_file;
pub mod random;
pub mod units;

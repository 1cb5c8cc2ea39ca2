//! What a damaged file comes to: a reason to count it under, and an error in our words.

use crate::formats::skips::Reason;
use crate::images::catch_decoder_panic::catch_decoder_panic;
use keel_base::error::Error;

/// What is wrong with a row, and the reason it is counted under.
pub(super) type Problem = (Reason, Error);

/// What a damaged file makes the library say, even where it says it by a panic.
pub(super) fn guarded<T>(
    name: &str,
    read: impl FnOnce() -> std::result::Result<T, Problem>,
) -> std::result::Result<T, Problem> {
    // The readers hold no state of ours.
    catch_decoder_panic(read)
        .unwrap_or_else(|| Err(broken(name, "the Parquet reader gave up on it")))
}

/// A file that cannot be read.
pub(super) fn broken(name: &str, problem: impl ToString) -> Problem {
    let remedy = "write the file anew, as datasets or pyarrow do (snappy, zstd, lz4, gzip or no compression)";
    (Reason::BadRecord, Error::content(name, problem, remedy))
}

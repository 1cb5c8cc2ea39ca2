//! Parquet files: rows of pairs and conversations, counted ones, or a sentence.
#![no_main]

use keel::data::pairs::{PairLimits, PairSource, Pairs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory can be written");
    let path = folder.path().join("input.parquet");
    std::fs::write(&path, bytes).expect("memory can be written");
    if let Ok(pairs) = Pairs::open(&path.to_string_lossy(), PairLimits::default()) {
        for index in 0..pairs.len().min(16) {
            let _ = pairs.get(index);
        }
    }
});

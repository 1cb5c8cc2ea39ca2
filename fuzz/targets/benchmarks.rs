//! Benchmark files of VLMEvalKit: questions with what the program relies on, or a sentence.
#![no_main]

use keel::data::benchmark::Benchmark;
use keel::eval::{Wording, is_right};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory can be written");
    let path = folder.path().join("input.tsv");
    std::fs::write(&path, bytes).expect("memory can be written");
    let Ok(benchmark) = Benchmark::open(&path) else {
        return;
    };
    for item in benchmark.flatten() {
        assert!(!item.question.is_empty() && !item.answer.is_empty());
        let asked = Wording::VlmEvalKit.question(&item);
        let _ = is_right(&item, &asked);
        let _ = is_right(&item, &item.answer);
    }
});

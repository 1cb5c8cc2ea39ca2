//! Lists of pairs and conversations, mixtures, tables, and the captions of a folder: usable records, counted ones, or a sentence.
//! The first byte chooses the kind.
#![no_main]

use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::data::records::words_of_json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    if let Ok(words) = words_of_json("input", content) {
        let _ = words.for_images("input", usize::from(*kind) % 4);
    }
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory can be written");
    let names = [
        "input.json",
        "input.jsonl",
        "input.tsv",
        "input.csv",
        "captions.txt",
        "metadata.csv",
    ];
    let name = names[usize::from(*kind) % names.len()];
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("memory can be written");
    let path = if name.starts_with("input") {
        path
    } else {
        folder.path().to_owned()
    };
    if let Ok(pairs) = Pairs::open(&path.to_string_lossy(), PairLimits::default()) {
        for index in 0..pairs.len().min(16) {
            let _ = pairs.get(index);
        }
    }
});

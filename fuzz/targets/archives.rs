//! tar archives of WebDataset: members of the size that their headers say, or a sentence.
#![no_main]

use keel::data::webdataset::{Shard, ShardItem, ShardLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let shard = Shard::from_bytes("input.tar", bytes.to_vec());
    for step in shard.samples(ShardLimits::default()) {
        if let Ok(ShardItem::Sample(sample)) = step {
            for member in &sample.members {
                if let Ok(content) = shard.read(member) {
                    assert_eq!(content.len() as u64, member.size);
                }
            }
        }
    }
});

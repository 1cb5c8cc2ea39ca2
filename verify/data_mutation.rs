//! Random damage: whatever is flipped or cut, reading ends in a value or an error, and memory stays within a cap.

use keel::data::image::{Image, ImageLimits};
use keel::data::records::words_of_json;
use keel::data::webdataset::{Shard, ShardLimits};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use crate::allocations::measure;
use crate::data_image::files;
use crate::data_webdataset::{entry, tar};

/// Pixels allowed in these tests.
const MAX_PIXELS: u64 = 1 << 14;

/// The documented 13 bytes a pixel; 16 MiB that the WebP decoder takes for a partition before it finds out that the
/// file is shorter; and 2 MiB for tables and buffers. None of it grows with what else a file claims.
const MEMORY_CAP: i64 = 13 * MAX_PIXELS as i64 + (18 << 20);

/// What to do to a file: bytes to change, as (place, new value), and how much of it to keep; places are fractions.
fn damage() -> impl Strategy<Value = (Vec<(f64, u8)>, f64)> {
    let keep = prop_oneof![3 => Just(1.0), 1 => 0.0..1.0_f64];
    (
        prop::collection::vec((0.0..1.0_f64, any::<u8>()), 0..8),
        keep,
    )
}

fn damaged(whole: &[u8], (changes, keep): &(Vec<(f64, u8)>, f64)) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (place, value) in changes {
        let place = (place * bytes.len() as f64) as usize;
        bytes[place] = *value;
    }
    bytes.truncate((keep * bytes.len() as f64) as usize);
    bytes
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_250_702),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn damaged_images_end_in_a_value_or_an_error_within_memory(kind in 0..18_usize, damage in damage()) {
        let (name, whole) = &files()[kind];
        let bytes = damaged(whole, &damage);
        let limits = ImageLimits { max_pixels: MAX_PIXELS };
        let (outcome, allocated) = measure(|| Image::decode(name, &bytes, &limits));
        prop_assert!(allocated.peak_bytes < MEMORY_CAP, "{}: {:?}", name, allocated);
        match outcome {
            Ok(image) => {
                let pixels = image.width as usize * image.height as usize;
                prop_assert_eq!(image.rgba.len(), 4 * pixels);
            }
            // A panic inside a decoder would be caught and reported in these words.
            Err(error) => prop_assert!(!error.to_string().contains("gave up"), "{}", error),
        }
    }

    #[test]
    fn damaged_archives_end_in_samples_or_an_error_within_memory(damage in damage()) {
        let long = entry("x", b'L', b"00000000010\0", b"longname");
        let whole = [long, tar(&[("a.jpg", &[3; 600]), ("a.txt", b"words"), ("b/c.png", b""), ("b/c.json", b"{}")])].concat();
        let shard = Shard::from_bytes("s.tar", damaged(&whole, &damage));
        let ((), allocated) = measure(|| {
            for step in shard.samples(ShardLimits::default()) {
                if let Ok(keel::data::webdataset::ShardItem::Sample(sample)) = step {
                    for member in &sample.members {
                        assert_eq!(shard.read(member).unwrap().len() as u64, member.size);
                    }
                }
            }
        });
        prop_assert!(allocated.peak_bytes < 1 << 16, "{:?}", allocated);
    }

    #[test]
    fn damaged_records_end_in_words_or_an_error(damage in damage()) {
        let whole = br#"{"id": 1, "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a \u00e9"}]}"#;
        if let Ok(words) = words_of_json("it", &damaged(whole, &damage)) {
            prop_assert!(!words.caption.trim().is_empty());
            // Marks and images agree, or it is an error.
            for images in 0..3 {
                if let Ok(words) = words.clone().for_images("it", images) {
                    prop_assert!(words.marks() == images || words.marks() == 0 && images <= 1);
                }
            }
        }
    }
}

//! Files that are valid but for a few places inside, by seed: what fuzzing does for hours, for seconds and the same each
//! time. What is asked of each reader stands in fuzz/mutation/check.rs.

use std::path::Path;

use keel_mutation::{check, choices_of};

use crate::allocations::measure;

/// Holds a reader to what is asked of it over the files of these seeds; some must be read and some refused, or the files are
/// not what they are meant to be.
fn over(seeds: u64, most_bytes: i64, check: fn(&[u8]) -> bool) {
    let mut read = 0;
    for seed in 0..seeds {
        let choices = choices_of(seed);
        let (outcome, allocated) = measure(|| {
            std::panic::catch_unwind(|| check(&choices))
                .unwrap_or_else(|_| panic!("the file of seed {seed}"))
        });
        // The first may set up what the others share.
        assert!(
            seed == 0 || allocated.peak_bytes < most_bytes,
            "seed {seed}: {allocated:?}"
        );
        read += u64::from(outcome);
    }
    println!("{read} of {seeds} read");
    assert!(read > seeds / 20 && read < seeds - seeds / 20, "{read}");
}

#[test]
fn archives_changed_inside_end_in_samples_or_an_error() {
    over(3000, 1 << 18, check::archives);
}

#[test]
fn images_changed_inside_end_in_an_image_or_an_error() {
    // As damaged images (verify/data_mutation.rs), and the file itself.
    over(4000, 20 << 20, check::images);
}

#[test]
fn records_changed_inside_are_used_counted_or_refused() {
    over(2000, 1 << 22, check::lists);
}

#[test]
fn parquet_files_changed_inside_end_in_rows_or_an_error() {
    over(1000, 4 << 30, check::parquets);
}

#[test]
fn folders_of_weights_changed_inside_end_in_models_or_an_error() {
    over(700, 1 << 22, check::weight_folders);
}

#[test]
fn checkpoints_changed_inside_and_sealed_again_are_loaded_whole_or_not_at_all() {
    over(300, 1 << 24, check::checkpoints);
}

#[test]
fn runs_go_on_from_checkpoints_changed_inside_or_say_why_not() {
    over(60, 1 << 28, check::run_folders);
}

/// Holds a reader to what is asked of it over the inputs that the corpus of a fuzz target holds, in fuzz/corpus. Some must be
/// read and some refused.
fn over_corpus(target: &str, most_bytes: i64, check: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder is readable").path());
    // The first may set up what the others share.
    check(&[]);
    let outcomes: Vec<bool> = paths
        .map(|path| {
            let choices = std::fs::read(&path).expect("the corpus is readable");
            let (outcome, allocated) = measure(|| {
                std::panic::catch_unwind(|| check(&choices))
                    .unwrap_or_else(|_| panic!("the file of {}", path.display()))
            });
            let name = path.display();
            assert!(allocated.peak_bytes < most_bytes, "{name}: {allocated:?}");
            outcome
        })
        .collect();
    assert!(outcomes.contains(&true), "none of {target} is read");
    assert!(outcomes.contains(&false), "none of {target} is refused");
}

#[test]
fn the_corpora_of_files_changed_inside_are_read_within_bounded_memory() {
    // The bounds of the tests above.
    over_corpus("archives_inside", 1 << 18, check::archives);
    over_corpus("images_inside", 20 << 20, check::images);
    over_corpus("records_inside", 1 << 22, check::lists);
    over_corpus("parquet_inside", 4 << 30, check::parquets);
    over_corpus("weights_inside", 1 << 22, check::weight_folders);
    over_corpus("checkpoints_inside", 1 << 24, check::checkpoints);
    over_corpus("run_folders_inside", 1 << 28, check::run_folders);
}

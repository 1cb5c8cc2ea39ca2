//! Parquet files that are valid but for a few places inside: in footers, page headers and pages. The input is the choices that
//! the file is made from; what is asked of the reader stands in fuzz/mutation/check.rs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|choices: &[u8]| {
    keel_mutation::check::parquets(choices);
});

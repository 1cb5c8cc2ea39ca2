//! Checkpoints that are changed inside and sealed again. The input is the choices that
//! the file is made from; what is asked of the reader stands in fuzz/mutation/check.rs.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|choices: &[u8]| {
    keel_mutation::check::checkpoints(choices);
});

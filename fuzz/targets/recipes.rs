//! Recipes: one that is written out and read again is the same, or a sentence.
#![no_main]

use keel::train::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(recipe) = Recipe::parse("input", text, &[]) {
        let written = recipe.to_toml();
        let again = Recipe::parse("written", &written, &[]).expect("what was written is read");
        assert_eq!(again.to_toml(), written);
    }
});

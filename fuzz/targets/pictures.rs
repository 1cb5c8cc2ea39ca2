//! JPEG, PNG and WebP files: a picture of the size that it says, or a sentence.
#![no_main]

use keel::data::picture::{Picture, PictureLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = PictureLimits {
        max_pixels: 1 << 14,
    };
    match Picture::decode("input", bytes, &limits) {
        Ok(picture) => {
            let pixels = picture.width as usize * picture.height as usize;
            assert_eq!(picture.rgba.len(), 4 * pixels);
        }
        // A panic inside a decoder is caught and reported in these words.
        Err(error) => assert!(!error.to_string().contains("gave up"), "{error}"),
    }
});

//! JPEG, PNG, WebP, GIF, BMP and TIFF files, with their metadata: an image of the size that it says, or a sentence.
#![no_main]

use keel::data::image::{Image, ImageLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = ImageLimits {
        max_pixels: 1 << 14,
    };
    match Image::decode("input", bytes, &limits) {
        Ok(image) => {
            let pixels = image.width as usize * image.height as usize;
            assert_eq!(image.rgba.len(), 4 * pixels);
        }
        // A panic inside a decoder is caught and reported in these words.
        Err(error) => assert!(!error.to_string().contains("gave up"), "{error}"),
    }
});

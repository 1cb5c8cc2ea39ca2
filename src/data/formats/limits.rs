//! What is accepted from outside, for all formats alike.

use super::skips::SkipLimits;
use super::webdataset::ShardLimits;
use crate::images::image::ImageLimits;

/// Endings of files taken for images, lower case.
pub(crate) const IMAGE_ENDINGS: [&str; 9] = [
    "png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff",
];

/// Largest caption, or sum of all words of a record, bytes.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Largest record or row, bytes: an image of the largest size in base64, and its words.
pub(crate) const MAX_RECORD_BYTES: u64 = 96 << 20;

/// Bounds for everything read from outside.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairLimits {
    /// Of one image.
    pub image: ImageLimits,
    /// Of one shard's members.
    pub shard: ShardLimits,
    /// How many samples may be bad.
    pub skips: SkipLimits,
}

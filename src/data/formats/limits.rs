//! What is accepted from outside, for all formats alike.

use super::skips::SkipLimits;
use super::webdataset::ShardLimits;
use crate::images::decode::CONVERT;
use crate::images::image::ImageLimits;
use keel_base::error::Error;

/// Endings of files taken for images, lower case.
pub(crate) const IMAGE_ENDINGS: [&str; 9] = [
    "png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff",
];

/// Endings of images that are not read, lower case, and what they are: they are counted and named, and never passed over.
pub(crate) const UNREAD_ENDINGS: [(&str, &str); 8] = [
    ("avif", "an AVIF"),
    ("heic", "a HEIC"),
    ("heif", "a HEIC"),
    ("jxl", "a JPEG XL"),
    ("jp2", "a JPEG 2000"),
    ("j2k", "a JPEG 2000"),
    ("psd", "a Photoshop file"),
    ("svg", "an SVG"),
];

/// What is said of an image by its ending alone, if it is of a kind that is not read.
pub(crate) fn unread(name: &str, ending: &str) -> Option<Error> {
    let (_, kind) = UNREAD_ENDINGS.iter().find(|(known, _)| *known == ending)?;
    Some(Error::content(name, format!("it is {kind}"), CONVERT))
}

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
    /// Whether the indexes of remote shards are kept from run to run, in the folder that `KEEL_CACHE` names or in the user's
    /// folder of caches.
    pub keeps_indexes: bool,
}

//! What is accepted from outside, for all formats alike.

use std::fs::{File, Metadata};
use std::path::{Component, Path};

use super::skips::SkipLimits;
use super::webdataset::ShardLimits;
use crate::images::image::ImageLimits;
use keel_base::error::{Error, Result};

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

/// Opens a file for reading.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened, [`Error::Content`] when it is a pipe, a folder or anything but a file.
pub(crate) fn open_file(path: &Path) -> Result<(File, Metadata)> {
    // Looked at before opening: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if !metadata.is_file() {
        return Err(Error::content(
            path.display(),
            "it is not a regular file",
            "name a file, or a folder of images without the ending .tar or .jsonl",
        ));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    Ok((file, metadata))
}

/// Whether a path below the data's folder holds nothing of the user's: what begins with a dot, and what macOS adds to a zip
/// archive (`__MACOSX`, whose `._a.jpg` are no images).
pub(crate) fn is_passed_over(path: &Path) -> bool {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        _ => None,
    });
    names
        .into_iter()
        .any(|name| name.starts_with(b".") || name == b"__MACOSX")
}

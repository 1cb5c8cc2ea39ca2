//! Which files are opened, and which are not looked at.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Component, Path};

use super::remote;
use keel_base::error::{Error, Result};

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

/// A file or an object from its beginning to its end.
///
/// # Errors
/// As [`open_file`] and [`remote::open`].
pub(crate) fn open_reader(path: &Path) -> Result<Box<dyn Read + Send>> {
    match remote::address_of(path) {
        Some(address) => Ok(Box::new(remote::reader(address)?)),
        None => Ok(Box::new(open_file(path)?.0)),
    }
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

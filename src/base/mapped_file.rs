//! A file in memory without reading it first.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::files::open_regular;

/// The bytes of a file, read from the disk when they are first looked at.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<MappedFile> {
        let file = open_regular(path).map_err(|e| Error::io(path, "open", e))?;
        // SAFETY: the mapping is read-only and private to this process. As for every reader of mapped weights, the file
        // must not be cut short by another program meanwhile; that ends the process with a signal and corrupts nothing.
        let map = unsafe { Mmap::map(&file) };
        map.map(MappedFile).map_err(|e| Error::io(path, "map", e))
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

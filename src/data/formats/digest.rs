//! What data are told by: names, lengths, texts, and where images lie. A run that goes on with other data than it began with
//! ends with other bits, and an ablation whose arms read different data compares nothing.
//!
//! Reading every image again would cost what an epoch costs. So an image in a file of its own counts by its name and size, one
//! in a shard by its key, place and size, and up to 1,024 of a source, evenly spaced, by the content of their first MiB too: of a
//! source with no more, all of them. Texts and lists count by their content. `keel data sums` is for the rest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use keel_base::error::{Error, Result};
use keel_stores::Object;

/// One source of samples: a folder, the shards of one pattern, a list or a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDigest {
    /// What it is called, for messages: the same data may lie elsewhere.
    pub name: String,
    /// Its usable samples.
    pub samples: u64,
    /// How many of an epoch's samples are of it.
    pub drawn: u64,
    /// A BLAKE3 hash of its names, lengths and texts, in hexadecimal.
    pub digest: String,
}

impl DataDigest {
    /// Whether both say the same data, wherever they lie.
    pub fn is_same(&self, other: &DataDigest) -> bool {
        let of = |one: &DataDigest| (one.samples, one.drawn, one.digest.clone());
        of(self) == of(other)
    }

    /// In a few words: `40 samples, 80 an epoch, content 1f4a09c2`.
    pub fn text(&self) -> String {
        let content = self.digest.get(..8).unwrap_or(&self.digest);
        if self.samples == self.drawn {
            format!("{} samples, content {content}", self.samples)
        } else {
            let (samples, drawn) = (self.samples, self.drawn);
            format!("{samples} samples, {drawn} an epoch, content {content}")
        }
    }
}

/// A file of up to so many bytes counts whole.
const WHOLE: u64 = 4 << 30;

/// Of a larger one, a piece of so many bytes counts…
const PIECE: u64 = 1 << 20;

/// … of each so many, and the last piece, where a Parquet file has its directory.
const STRIDE: u64 = 64 << 20;

/// Takes in the length of a file and its content.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub(super) fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        hasher.update(&length.to_le_bytes());
        if length <= WHOLE {
            hasher.update_reader(file)?;
            return Ok(());
        }
        for start in (0..length).step_by(STRIDE as usize).chain([length - PIECE]) {
            file.seek(SeekFrom::Start(start))?;
            hasher.update_reader(file.by_ref().take(PIECE))?;
        }
        Ok(())
    };
    read().map_err(|problem| Error::io(path, "read", problem))
}

/// What an object of a store is told by: its size, and its tag or the time of its last change.
pub(super) fn version_of(object: &Object) -> String {
    format!("{} bytes, {}", object.size(), object.version())
}

/// Images of a source whose content counts.
const IMAGES: usize = 1024;

/// Bytes of an image that count.
pub(super) const IMAGE_BYTES: u64 = 1 << 20;

/// Which of `count` samples have images that count by their content: all, or so many, evenly spaced with the first and the last.
pub(super) fn looked_at(count: usize) -> Vec<usize> {
    if count <= IMAGES {
        return (0..count).collect();
    }
    let place = |number: usize| number * (count - 1) / (IMAGES - 1);
    (0..IMAGES).map(place).collect()
}

/// Takes in a text so that it cannot run into the next.
pub(super) fn add_text(hasher: &mut blake3::Hasher, text: &[u8]) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text);
}

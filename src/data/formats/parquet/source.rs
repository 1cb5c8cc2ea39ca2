//! Where a Parquet file's bytes come from: a file that is mapped, or an object of a store.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use parquet::errors::{ParquetError, Result as Outcome};
use parquet::file::reader::{ChunkReader, Length};

use crate::formats::archive::InputFile;
use crate::formats::remote;
use keel_base::error::{Error, Result};
use keel_base::mapped_file::MappedFile;
use keel_stores::{Blocks, Failure, Object};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A page is unpacked from where the system keeps it.
    Mapped(Bytes),
    Remote(Arc<Remote>),
}

/// An object, and why it could not be read: the library hands on the words of an error only.
#[derive(Debug)]
pub(super) struct Remote {
    blocks: Blocks,
    failure: Mutex<Option<Failure>>,
}

impl Source {
    /// Opens a file or an object.
    ///
    /// # Errors
    /// As [`InputFile::open`].
    pub fn open(path: &Path) -> Result<Source> {
        if let Some(address) = remote::address_of(path) {
            return Ok(Source::Remote(Arc::new(Remote {
                blocks: Blocks::new(remote::open(address)?),
                failure: Mutex::default(),
            })));
        }
        // What is no regular file is refused before it is mapped.
        InputFile::open(path)?;
        Ok(Source::Mapped(Bytes::from_owner(MappedFile::open(path)?)))
    }

    /// The object that this is, where it is one.
    pub fn object(&self) -> Option<&Object> {
        match self {
            Source::Mapped(_) => None,
            Source::Remote(remote) => Some(remote.blocks.object()),
        }
    }

    /// Why the object could not be read, where that is what went wrong.
    pub fn failed(&self) -> Option<Error> {
        let Source::Remote(remote) = self else {
            return None;
        };
        let failure = remote.failure();
        let name = remote.blocks.object().name();
        failure
            .clone()
            .map(|failure| remote::stopped(name, failure))
    }
}

impl Remote {
    fn failure(&self) -> std::sync::MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, start: u64, size: u64) -> Outcome<Bytes> {
        if start
            .checked_add(size)
            .is_none_or(|end| end > self.blocks.object().size())
        {
            return Err(ParquetError::EOF(format!(
                "{size} bytes at {start} are not there"
            )));
        }
        self.blocks
            .read(start, size)
            .map(Bytes::from)
            .map_err(|failure| {
                let words = failure.to_string();
                *self.failure() = Some(failure);
                ParquetError::General(words)
            })
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        match self {
            Source::Mapped(bytes) => bytes.len() as u64,
            Source::Remote(remote) => remote.blocks.object().size(),
        }
    }
}

impl ChunkReader for Source {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Outcome<Box<dyn Read>> {
        match self {
            Source::Mapped(bytes) => Ok(Box::new(bytes.get_read(start)?)),
            Source::Remote(remote) => Ok(Box::new(Onward {
                remote: remote.clone(),
                at: start,
                ahead: Bytes::new(),
            })),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Outcome<Bytes> {
        match self {
            Source::Mapped(bytes) => bytes.get_bytes(start, length),
            Source::Remote(remote) => remote.read(start, length as u64),
        }
    }
}

/// An object from some place on; the library reads the headers of pages so, byte by byte.
struct Onward {
    remote: Arc<Remote>,
    at: u64,
    ahead: Bytes,
}

/// Bytes that are taken from a block at once: most headers of pages are shorter.
const AHEAD: u64 = 4096;

impl Read for Onward {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ahead.is_empty() {
            let rest = self.remote.blocks.object().size().saturating_sub(self.at);
            let read = self.remote.read(self.at, AHEAD.min(rest));
            self.ahead = read.map_err(std::io::Error::other)?;
            self.at += self.ahead.len() as u64;
        }
        let size = buffer.len().min(self.ahead.len());
        self.ahead.copy_to_slice(&mut buffer[..size]);
        Ok(size)
    }
}

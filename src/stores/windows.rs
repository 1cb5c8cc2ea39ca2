//! Reading an object from its beginning on, of which some parts are passed over: the headers of an archive, the lines of a list.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use crate::failure::Result;
use crate::object::Object;

/// Bytes of the first window, and of one after a leap.
const LEAST: u64 = 64 << 10;

/// Bytes of the largest window.
const MOST: u64 = 4 << 20;

/// What is passed over is fetched all the same up to so many bytes: a request takes as long as they do.
const LEAP: u64 = 1 << 20;

/// Windows held at once: what is read next to the last header may lie a little before it.
const HELD: usize = 2;

/// Windows on an object, which grow as long as reading goes on without leaps. No more than 8 MiB are held.
#[derive(Debug)]
pub struct Windows {
    object: Arc<Object>,
    /// Where each begins, and its bytes; in order.
    held: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of the next.
    next: u64,
}

impl Windows {
    /// Windows on `object`, none of which is fetched yet.
    pub fn new(object: Arc<Object>) -> Windows {
        Windows {
            object,
            held: VecDeque::new(),
            next: LEAST,
        }
    }

    /// Where what is held ends.
    fn end(&self) -> u64 {
        self.held
            .back()
            .map_or(0, |(start, bytes)| start + bytes.len() as u64)
    }

    /// The bytes from `offset` to the end of the window that it lies in; nothing where it lies in none.
    fn from(&self, offset: u64) -> Option<&[u8]> {
        self.held.iter().rev().find_map(|(start, bytes)| {
            let skip = offset.checked_sub(*start)?;
            bytes.get(skip as usize..).filter(|rest| !rest.is_empty())
        })
    }

    /// Fetches the window that `offset` lies in, which lies in none that is held.
    fn fetch(&mut self, offset: u64) -> Result<()> {
        let gap = offset.saturating_sub(self.end());
        if gap > LEAP {
            self.next = LEAST;
        }
        let size = self.next.min(self.object.size() - offset);
        let bytes = self.object.read(offset, size)?;
        if self.held.len() == HELD {
            self.held.pop_front();
        }
        self.held.push_back((offset, bytes));
        self.next = MOST.min(2 * self.next);
        Ok(())
    }

    /// The `size` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Object::read`].
    pub fn read(&mut self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let is_behind = self.held.front().is_some_and(|(start, _)| offset < *start);
        let is_beyond = offset
            .checked_add(size)
            .is_none_or(|end| end > self.object.size());
        // What lies behind is read by itself: the windows stay where the walk goes on.
        if size > MOST || is_behind || is_beyond {
            return self.object.read(offset, size);
        }
        let mut bytes = Vec::with_capacity(size as usize);
        while (bytes.len() as u64) < size {
            let at = offset + bytes.len() as u64;
            let wanted = size as usize - bytes.len();
            match self.from(at) {
                Some(rest) => bytes.extend_from_slice(&rest[..rest.len().min(wanted)]),
                None => self.fetch(at)?,
            }
        }
        Ok(bytes)
    }

    /// The object from its beginning to its end.
    pub fn reader(object: Arc<Object>) -> impl Read + Send {
        Reader {
            windows: Windows::new(object),
            at: 0,
        }
    }
}

/// See [`Windows::reader`].
struct Reader {
    windows: Windows,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.windows.object.size() || buffer.is_empty() {
            return Ok(0);
        }
        if self.windows.from(self.at).is_none() {
            self.windows.fetch(self.at)?;
        }
        let rest = self.windows.from(self.at).unwrap_or_default();
        let size = rest.len().min(buffer.len());
        buffer[..size].copy_from_slice(&rest[..size]);
        self.at += size as u64;
        Ok(size)
    }
}

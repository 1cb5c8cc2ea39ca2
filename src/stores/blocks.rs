//! Reading objects here and there, by many small reads near each other: the directory and the pages of a Parquet file.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::failure::Result;
use crate::object::Object;

/// Bytes of a block.
const BLOCK: u64 = 256 << 10;

/// Blocks held at once, of all objects together.
const HELD: usize = 256;

/// A block: which object's, its number there, and its bytes.
type Held = (u64, u64, Arc<Vec<u8>>);

/// The blocks that were read last, the very last at the end.
static BLOCKS: Mutex<VecDeque<Held>> = Mutex::new(VecDeque::new());

fn held() -> MutexGuard<'static, VecDeque<Held>> {
    // Whole after every statement.
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object that is read by blocks, for any number of threads. The blocks that were read last are held, at most 64 MiB of all
/// objects together.
#[derive(Debug)]
pub struct Blocks {
    object: Arc<Object>,
    /// Which of the objects of this process it is.
    id: u64,
}

impl Blocks {
    /// Blocks of `object`, none of which is fetched yet.
    pub fn new(object: Arc<Object>) -> Blocks {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        Blocks { object, id }
    }

    /// The object.
    pub fn object(&self) -> &Object {
        &self.object
    }

    fn block(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        {
            let mut held = held();
            let is_it = |(id, of, _): &Held| (*id, *of) == (self.id, number);
            if let Some(block) = held.iter().position(is_it).and_then(|at| held.remove(at)) {
                let bytes = block.2.clone();
                held.push_back(block);
                return Ok(bytes);
            }
        }
        // Not under the lock: two threads may fetch one block, and none waits for another's.
        let start = number * BLOCK;
        let size = BLOCK.min(self.object.size() - start);
        let bytes = Arc::new(self.object.read(start, size)?);
        let mut held = held();
        if held.len() == HELD {
            held.pop_front();
        }
        held.push_back((self.id, number, bytes.clone()));
        Ok(bytes)
    }

    /// The `size` bytes at `offset`: by blocks, or by themselves where they are more than a few blocks.
    ///
    /// # Errors
    /// As [`Object::read`].
    pub fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(size);
        if size > 4 * BLOCK || end.is_none_or(|end| end > self.object.size()) {
            return self.object.read(offset, size);
        }
        let mut bytes = Vec::with_capacity(size as usize);
        while (bytes.len() as u64) < size {
            let at = offset + bytes.len() as u64;
            let wanted = size as usize - bytes.len();
            let block = self.block(at / BLOCK)?;
            let rest = &block[(at % BLOCK) as usize..];
            bytes.extend_from_slice(&rest[..rest.len().min(wanted)]);
        }
        Ok(bytes)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        held().retain(|(id, ..)| *id != self.id);
    }
}

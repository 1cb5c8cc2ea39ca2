//! An object that is read by ranges, by any thread, with the same bytes every time or an error.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use crate::address::Address;
use crate::client::{Client, Piece, connect};
use crate::failure::{Failure, Result};

/// Most bytes of one request; a longer range is asked for piece by piece, so that each fits its time limit.
const MOST_BYTES: u64 = 8 << 20;

/// Bytes that the first request asks for, which shows size, version and whether ranges are answered.
const FIRST_BYTES: u64 = 16 << 10;

/// Times that a request is made at most.
const ATTEMPTS: u32 = 5;

/// Time before the second attempt; it doubles from one to the next, so that all waits together take three seconds.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// An opened object.
pub struct Object {
    address: Address,
    client: Arc<dyn Client>,
    size: u64,
    version: Option<String>,
    again: Mutex<Again>,
}

/// Requests that were made again.
#[derive(Debug, Default)]
struct Again {
    count: u64,
    /// Why, the first time.
    first: String,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Object({}, {} bytes)", self.name(), self.size)
    }
}

impl Object {
    /// Asks the store for the object's beginning, and so for its size and version.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an address that is none, [`ErrorKind::NotFound`] and [`ErrorKind::PermissionDenied`] as
    /// the store says, [`ErrorKind::Unsupported`] for a server that does not answer ranges or a build without network,
    /// and what is left of failures that did not pass. Each text says what to do.
    pub fn open(address: &str) -> Result<Object> {
        let address = Address::parse(address)?;
        let client = connect(&address)?;
        Object::of(address, client)
    }

    fn of(address: Address, client: Arc<dyn Client>) -> Result<Object> {
        let again = Mutex::default();
        let first = patiently(&*client, 0..FIRST_BYTES, &again)?;
        Ok(Object {
            address,
            client,
            size: first.size,
            version: first.version,
            again,
        })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.address.name
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What this version of it is told by beside its size: the store's tag or the time of its last change; empty where the
    /// store says neither.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or_default()
    }

    /// The `size` bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] where they lie outside, [`ErrorKind::InvalidData`] where the object is another than the
    /// one that was opened, and what is left of failures that did not pass.
    pub fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(Failure::lasting(
                ErrorKind::UnexpectedEof,
                format!(
                    "{size} bytes at {offset} lie beyond its {} bytes",
                    self.size
                ),
                "write the object again",
            ));
        };
        let mut bytes = Vec::with_capacity(size as usize);
        let mut at = offset;
        while at < end {
            let range = at..end.min(at + MOST_BYTES);
            at = range.end;
            let piece = patiently(&*self.client, range, &self.again)?;
            self.check(&piece)?;
            bytes.extend_from_slice(&piece.bytes);
        }
        Ok(bytes)
    }

    /// Holds what came to what was opened.
    fn check(&self, piece: &Piece) -> Result<()> {
        if piece.size == self.size && piece.version == self.version {
            return Ok(());
        }
        let told = |size: u64, version: &Option<String>| match version {
            Some(version) => format!("{size} bytes, {version}"),
            None => format!("{size} bytes"),
        };
        Err(Failure::lasting(
            ErrorKind::InvalidData,
            format!(
                "it changed while it was read: it was {}, is {}",
                told(self.size, &self.version),
                told(piece.size, &piece.version)
            ),
            "put the object back, or begin anew with the one that is there",
        ))
    }

    /// How many requests had to be made again so far, and why the first of them.
    pub fn made_again(&self) -> (u64, String) {
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        (again.count, again.first.clone())
    }
}

/// Makes a request, again and again more slowly where what failed may pass.
fn patiently(client: &dyn Client, range: Range<u64>, again: &Mutex<Again>) -> Result<Piece> {
    let mut wait = FIRST_WAIT;
    for attempt in 1.. {
        let mut failure = match client.get(range.clone()) {
            Ok(piece) => return Ok(piece),
            Err(failure) => failure,
        };
        if !failure.is_passing {
            return Err(failure);
        }
        if attempt == ATTEMPTS {
            failure.problem += &format!(", {ATTEMPTS} times");
            return Err(failure);
        }
        {
            let mut again = again.lock().unwrap_or_else(PoisonError::into_inner);
            if again.count == 0 {
                again.first = failure.problem;
            }
            again.count += 1;
        }
        sleep(wait);
        wait *= 2;
    }
    unreachable!("the last attempt returns")
}

//! One object as a client sees it: ranges of bytes, with what the store says of the whole.

use std::ops::Range;
use std::sync::Arc;

use crate::address::Address;
use crate::failure::Result;

/// What a store says of an object, with some of its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// The bytes of the range that was asked for, as far as the object goes.
    pub bytes: Vec<u8>,
    /// Bytes of the whole object.
    pub size: u64,
    /// What this version of the object is told by: the store's tag, else the time of its last change, else nothing.
    pub version: Option<String>,
}

/// Makes requests for one object; each ends within a time limit, with or without what was asked for.
pub(crate) trait Client: Send + Sync {
    /// Some of the bytes.
    fn get(&self, range: Range<u64>) -> Result<Piece>;
}

/// The client of an address.
#[cfg(feature = "network")]
pub(crate) fn connect(address: &Address) -> Result<Arc<dyn Client>> {
    crate::network::connect(address)
}

/// Refuses every address.
#[cfg(not(feature = "network"))]
pub(crate) fn connect(_: &Address) -> Result<Arc<dyn Client>> {
    Err(crate::failure::Failure::lasting(
        std::io::ErrorKind::Unsupported,
        "this program was built without object stores",
        "build it with the feature stores, which is on by default",
    ))
}

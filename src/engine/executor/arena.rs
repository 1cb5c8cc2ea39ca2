//! Byte arenas: one aligned allocation, read and written through typed views at planned offsets.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use keel_base::error::{Error, Result};

/// Arenas start at a page, so that a planned offset's alignment is also its address's.
const PAGE: usize = 4096;

/// A fixed range of zeroed memory. Sharing it is up to its owner: views are made through unsafe functions whose
/// callers name the plan that keeps them apart.
#[derive(Debug)]
pub struct ByteArena {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the arena is plain memory; who may touch which bytes when is the obligation of `slice` and `slice_mut`.
unsafe impl Send for ByteArena {}
// SAFETY: as above.
unsafe impl Sync for ByteArena {}

impl ByteArena {
    /// `bytes` of zeros. The system hands pages out when they are first touched.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the system has no such range of memory.
    pub fn new(what: &str, bytes: usize) -> Result<ByteArena> {
        if bytes == 0 {
            return Ok(ByteArena {
                start: NonNull::dangling(),
                bytes,
            });
        }
        let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| {
            Error::stopped(
                what,
                format!("{bytes} bytes do not fit the address space"),
                "choose a smaller batch",
            )
        })?;
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(ByteArena { start, bytes }),
            None => Err(Error::stopped(
                what,
                format!("the system refused {bytes} bytes"),
                "choose a smaller batch or a --memory-budget",
            )),
        }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of byte `offset` if `elements` elements of `T` fit from there.
    fn address<T: bytemuck::Pod>(&self, offset: usize, elements: usize) -> *mut T {
        let end = elements
            .checked_mul(size_of::<T>())
            .and_then(|b| b.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "a view reaches past its arena"
        );
        assert!(
            offset.is_multiple_of(align_of::<T>()),
            "a view is not aligned to its type"
        );
        if elements == 0 {
            return NonNull::dangling().as_ptr();
        }
        // SAFETY: the offset lies inside the allocation, checked above.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }

    /// `elements` elements of `T` from byte `offset` on.
    ///
    /// # Safety
    /// Nobody writes these bytes while the slice lives.
    pub unsafe fn slice<T: bytemuck::Pod>(&self, offset: usize, elements: usize) -> &[T] {
        // SAFETY: in bounds and aligned (checked by `address`), initialised (zeroed at birth, `T` is plain data), not
        // written meanwhile (the caller's promise).
        unsafe { std::slice::from_raw_parts(self.address(offset, elements), elements) }
    }

    /// `elements` elements of `T` from byte `offset` on, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice_mut<T: bytemuck::Pod>(&self, offset: usize, elements: usize) -> &mut [T] {
        // SAFETY: in bounds and aligned (checked by `address`), initialised, exclusive (the caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.address(offset, elements), elements) }
    }
}

impl Drop for ByteArena {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let layout = Layout::from_size_align(self.bytes, PAGE).expect("checked when made");
            // SAFETY: allocated in `new` with this layout, freed once.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

//! Global memory of the emulator: unreadable pages before and behind, NaN until written.

use super::Element;
use super::ffi::Library;
use keel_base::error::{Error, Result};
use std::ffi::c_void;
use std::ptr::NonNull;

/// An allocation. It may move to another thread, but two threads never hold it at once, as launches write through it.
pub struct Buffer {
    library: &'static Library,
    memory: NonNull<u8>,
    element: Element,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone, and the library's functions may be called from any thread.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(super) fn new(library: &'static Library, element: Element, count: usize) -> Result<Buffer> {
        let bytes = count.checked_mul(element.size()).ok_or_else(|| {
            Error::kernel(format!(
                "a buffer of {count} {element} is larger than memory"
            ))
        })?;
        // SAFETY: the function takes any size and returns fresh memory or null.
        let memory = unsafe { (library.allocate)(bytes) };
        let memory = NonNull::new(memory.cast::<u8>()).ok_or_else(|| Error::Device {
            device: "simt".to_owned(),
            problem: format!("the system has no {bytes} bytes for a buffer"),
            remedy: "use a smaller batch or model".to_owned(),
        })?;
        Ok(Buffer {
            library,
            memory,
            element,
            bytes,
        })
    }

    /// What it was allocated for.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Copies `data` to the bytes from `offset` on.
    ///
    /// # Errors
    /// When they do not fit, or the buffer is protected.
    pub fn write_bytes(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        self.check_range(offset, data.len())?;
        // SAFETY: the range was just checked, and nobody else holds the buffer while it is borrowed mutably.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.address().add(offset), data.len());
        }
        Ok(())
    }

    /// Copies the bytes from `offset` on into `data`.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn read_bytes(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        self.check_range(offset, data.len())?;
        // SAFETY: the range was just checked; launches end before they return, so nothing writes now.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.address().add(offset),
                data.as_mut_ptr(),
                data.len(),
            );
        }
        Ok(())
    }

    /// Overwrites the buffer with `values`.
    ///
    /// # Errors
    /// When they are longer than the buffer.
    pub fn write<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Result<()> {
        self.write_bytes(0, bytemuck::cast_slice(values))
    }

    /// The whole content.
    ///
    /// # Errors
    /// When the buffer does not hold whole `T`s.
    pub fn read<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        if !self.bytes.is_multiple_of(size_of::<T>()) {
            return Err(Error::kernel(format!(
                "a buffer of {} bytes does not hold whole elements of {} bytes",
                self.bytes,
                size_of::<T>()
            )));
        }
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        self.read_bytes(0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Runs `work` while the pages of this buffer cannot be written: a kernel that writes its input is reported.
    ///
    /// # Errors
    /// When the system refuses to change the protection, and whatever `work` returns.
    pub fn read_only<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.protect(false)?;
        let result = work();
        self.protect(true)?;
        result
    }

    fn protect(&self, writable: bool) -> Result<()> {
        // SAFETY: the memory came from the same library and is still allocated.
        let code =
            unsafe { (self.library.protect)(self.address().cast::<c_void>(), writable.into()) };
        if code == 0 {
            return Ok(());
        }
        Err(Error::kernel(format!(
            "the protection of a buffer of {} bytes cannot be changed",
            self.bytes
        )))
    }

    fn check_range(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::kernel(format!(
            "{len} bytes from byte {offset} on do not lie in a buffer of {} bytes",
            self.bytes
        )))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the memory came from the same library, and nothing refers to it any more.
        unsafe { (self.library.release)(self.address().cast::<c_void>()) }
    }
}

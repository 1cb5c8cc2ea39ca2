//! Memory of the GPU, and memory of the host that the GPU can read by itself.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::sys;

use super::gpu::Gpu;
use keel_base::error::{Error, Result};

/// A range of the GPU's memory.
pub(super) struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// `bytes` bytes, all `fill`.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the device has no more.
    pub fn new(gpu: &Arc<Gpu>, what: &str, bytes: usize, fill: u8) -> Result<DeviceMemory> {
        gpu.bind()?;
        let mut memory = DeviceMemory {
            gpu: gpu.clone(),
            address: 0,
            bytes,
        };
        if bytes == 0 {
            return Ok(memory);
        }
        // SAFETY: the size is above zero; the memory is freed once, when this value is dropped.
        unsafe { gpu.driver.mem_alloc(&mut memory.address, bytes) }.map_err(|problem| {
            let left = gpu.memory().map_or(String::new(), |(free, total)| {
                format!(", of whose {total} bytes {free} are free")
            });
            Error::stopped(
                format!("device cuda: {what}"),
                format!(
                    "{bytes} bytes are refused by the {}{left} ({problem})",
                    gpu.found.name
                ),
                "choose a smaller batch or a --memory-budget",
            )
        })?;
        // SAFETY: the memory was just allocated with this length; the computing stream is the one that uses it next.
        gpu.check(unsafe {
            gpu.driver
                .memset_d8_async(memory.address, fill, bytes, gpu.compute())
        })?;
        Ok(memory)
    }

    /// Its first byte's address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn range(&self, offset: usize, bytes: usize) -> u64 {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "the plan places every value inside its arena"
        );
        self.address + offset as u64
    }

    /// Copies `data` to the bytes from `offset` on, after everything that was asked of the GPU before.
    ///
    /// The copy is asked of the computing stream. One that names no stream would return while its last bytes are still on
    /// their way from the driver's own memory, and the computing stream would not wait for them (CUDA Driver API, "API
    /// synchronization behavior").
    pub fn upload(&self, offset: usize, data: &[u8]) -> Result<()> {
        let to = self.range(offset, data.len());
        if data.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        let _order = self.gpu.in_order();
        let (driver, stream) = (self.gpu.driver, self.gpu.compute());
        let from = data.as_ptr().cast();
        // SAFETY: the range lies in the allocation; the data live until the stream is waited for below.
        let asked = unsafe { driver.memcpy_htod_async(to, from, data.len(), stream) };
        self.gpu.check(asked)?;
        self.gpu.wait()
    }

    /// Copies the bytes from `offset` on into `data`, after everything that was asked of the GPU before.
    pub fn download(&self, offset: usize, data: &mut [u8]) -> Result<()> {
        let from = self.range(offset, data.len());
        if data.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        let _order = self.gpu.in_order();
        // The copy itself may wait: into memory that is not pinned it returns when it is done.
        self.gpu.look_at_clock();
        let (driver, stream) = (self.gpu.driver, self.gpu.compute());
        let to = data.as_mut_ptr().cast();
        // SAFETY: as above.
        let asked = unsafe { driver.memcpy_dtoh_async(to, from, data.len(), stream) };
        self.gpu.check(asked)?;
        self.gpu.wait()
    }

    /// As [`DeviceMemory::upload`], but from pinned memory and in the order of `stream`.
    pub fn upload_from(
        &self,
        pinned: &PinnedMemory,
        offset: usize,
        bytes: usize,
        stream: sys::CUstream,
    ) -> Result<()> {
        let to = self.range(offset, bytes);
        let data = pinned.range(offset, bytes);
        let from = data.as_ptr().cast();
        // SAFETY: both ranges lie in their allocations; the owner of both keeps them until the stream is past this, and
        // writes the host's only after waiting for it.
        self.gpu
            .check(unsafe { self.gpu.driver.memcpy_htod_async(to, from, bytes, stream) })
    }

    /// Copies `bytes` bytes from `offset` on to `target` from `to` on, in the order of the computing stream.
    pub fn copy_to(
        &self,
        offset: usize,
        target: &DeviceMemory,
        to: usize,
        bytes: usize,
    ) -> Result<()> {
        let (from, to) = (self.range(offset, bytes), target.range(to, bytes));
        let _order = self.gpu.in_order();
        // SAFETY: both ranges lie in their allocations, which their owner keeps until the stream is past this.
        self.gpu.check(unsafe {
            self.gpu
                .driver
                .memcpy_dtod_async(to, from, bytes, self.gpu.compute())
        })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 {
            // Work that is still under way may use it; when waiting fails, the context is dead and nothing runs.
            self.gpu.bind().ok();
            self.gpu.wait().ok();
            // SAFETY: allocated in `new`, freed once.
            unsafe { self.gpu.driver.mem_free(self.address) }.ok();
        }
    }
}

/// Memory of the host at a fixed place.
pub(super) struct PinnedMemory {
    gpu: Arc<Gpu>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is this value's alone; the driver pins it for all threads.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the system has no more of it.
    pub fn new(gpu: &Arc<Gpu>, what: &str, bytes: usize) -> Result<PinnedMemory> {
        gpu.bind()?;
        if bytes == 0 {
            return Ok(PinnedMemory {
                gpu: gpu.clone(),
                start: NonNull::dangling(),
                bytes,
            });
        }
        let mut start = std::ptr::null_mut();
        // SAFETY: the size is above zero; the memory is freed once, when this value is dropped.
        unsafe { gpu.driver.mem_host_alloc(&mut start, bytes, 0) }.map_err(|problem| {
            Error::stopped(
                format!("device cuda: {what}"),
                format!("{bytes} bytes of the host's memory cannot be pinned ({problem})"),
                "choose a smaller batch, or raise the limit that `ulimit -l` shows",
            )
        })?;
        let memory = PinnedMemory {
            gpu: gpu.clone(),
            start: NonNull::new(start.cast()).expect("the driver reported success"),
            bytes,
        };
        // SAFETY: the allocation has this length.
        unsafe { memory.start.as_ptr().write_bytes(0, bytes) };
        Ok(memory)
    }

    fn range(&self, offset: usize, bytes: usize) -> &[u8] {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "every input has its place in the staging memory"
        );
        // SAFETY: the range lies in the allocation, which `new` initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), bytes) }
    }

    /// Overwrites the bytes from `offset` on.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.range(offset, data.len());
        // SAFETY: the range lies in the allocation (just checked), and it is this value's alone.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                self.start.as_ptr().add(offset),
                data.len(),
            );
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.gpu.bind().ok();
            // SAFETY: allocated in `new`, freed once; its owner waits for the copies that read it.
            unsafe { self.gpu.driver.mem_free_host(self.start.as_ptr().cast()) }.ok();
        }
    }
}

//! A launch with every address in its place: checked once, started in every step.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;

use super::super::resolved::{ByteRange, ResolvedArgument, ResolvedLaunch};
use super::driver::Code;
use super::gpu::Gpu;
use super::kernels::{Kernels, LoadedKernel};
use keel_base::error::{Error, Result};

/// See the module's documentation.
pub(super) struct PreparedLaunch {
    pub kernel: Arc<LoadedKernel>,
    pub grid: [u32; 3],
    pub arguments: Vec<ResolvedArgument>,
    /// The arguments as the driver takes them: little-endian in eight bytes.
    pub values: Vec<u64>,
    /// The op it belongs to and where that stands.
    origin: String,
}

impl PreparedLaunch {
    /// A launch that [`super::super::resolved::resolve`] held to its kernel, with its memory. `locate` gives a range's
    /// arena: its address and its length in bytes.
    ///
    /// # Errors
    /// [`Error::Device`] on what this executor does not launch; [`Error::Kernel`] on a kernel that cannot be loaded and on a
    /// range that does not lie in its arena, with the kernel's name and both values.
    pub fn new(
        kernels: &Kernels,
        launch: &ResolvedLaunch,
        origin: String,
        locate: impl Fn(ByteRange) -> (u64, usize),
    ) -> Result<PreparedLaunch> {
        launch.require_plain("cuda")?;
        let kernel = kernels.load(launch.kernel)?;
        let mut values = Vec::with_capacity(launch.arguments.len());
        for (index, argument) in launch.arguments.iter().enumerate() {
            values.push(match *argument {
                ResolvedArgument::Null => 0,
                // The driver reads as many bytes as the parameter has, from the front: on a little-endian machine the
                // low ones.
                ResolvedArgument::I32(value) => u64::from(value as u32),
                ResolvedArgument::I64(value) => value as u64,
                ResolvedArgument::F32(value) => u64::from(value.to_bits()),
                ResolvedArgument::ByteRange(range) => {
                    let (start, length) = locate(range);
                    let end = range.offset.checked_add(range.bytes);
                    if end.is_none_or(|end| end > length)
                        || !range.offset.is_multiple_of(range.element.size())
                    {
                        return Err(Error::kernel(format!(
                            "kernel {} of {origin}, argument {index}: {} bytes of {} from byte {} on do not lie in an \
                             arena of {length} bytes",
                            kernel.entry, range.bytes, range.element, range.offset
                        )));
                    }
                    start + range.offset as u64
                }
                ResolvedArgument::TensorMap(..) => unreachable!("require_plain refuses it"),
            });
        }
        Ok(PreparedLaunch {
            grid: launch.grid,
            arguments: launch.arguments.clone(),
            kernel,
            values,
            origin,
        })
    }

    /// Asks the computing stream to run it.
    pub fn enqueue(self: &Arc<Self>, gpu: &Gpu) -> Result<(), Code> {
        let _order = gpu.in_order();
        self.enqueue_on(gpu, gpu.compute())
    }

    /// Asks a stream to run it: the computing one, or one that is captured.
    pub fn enqueue_on(self: &Arc<Self>, gpu: &Gpu, stream: sys::CUstream) -> Result<(), Code> {
        gpu.remember(self);
        let mut pointers: Vec<*mut c_void> = self
            .values
            .iter()
            .map(|value| std::ptr::from_ref(value).cast_mut().cast())
            .collect();
        let [x, y, z] = self.grid;
        // SAFETY: `resolve` checked number, types and sizes of the values against the entry point's declaration, and `new`
        // every pointer against its arena; the session owns the arenas and waits for the stream before they go. The driver
        // only reads through the pointers, and before it returns.
        unsafe {
            gpu.driver.launch_kernel(
                self.kernel.function(),
                x,
                y,
                z,
                self.kernel.threads,
                1,
                1,
                self.kernel.shared_bytes,
                stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
    }

    /// The ranges it may write: those behind pointers to what is not const.
    #[cfg(feature = "cust")]
    pub fn written(&self) -> impl Iterator<Item = ByteRange> {
        use crate::launch::Parameter;
        self.arguments
            .iter()
            .zip(self.kernel.entry.parameters)
            .filter_map(|pair| match pair {
                (
                    ResolvedArgument::ByteRange(range),
                    Parameter::Pointer {
                        is_const: false, ..
                    },
                ) => Some(*range),
                _ => None,
            })
    }
}

impl fmt::Display for PreparedLaunch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        let arguments: Vec<String> = self
            .arguments
            .iter()
            .map(|argument| argument.to_string())
            .collect();
        write!(
            f,
            "kernel {} of {}, grid ({x},{y},{z}), block ({},1,1), {} bytes of shared memory, arguments ({})",
            self.kernel.entry,
            self.origin,
            self.kernel.threads,
            self.kernel.shared_bytes,
            arguments.join(", ")
        )
    }
}

//! A launch with every address in its place: checked once, started in every step.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;

use super::super::resolved::{Abilities, ByteRange, ResolvedArgument, ResolvedLaunch};
use super::driver::Code;
use super::gpu::Gpu;
use super::kernels::{Kernels, LoadedKernel};
use crate::launch::{MAX_DIMS, Swizzle, TensorMap};
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// No kernel of an op has clusters yet.
const ABILITIES: Abilities = Abilities {
    launches_clusters: false,
    passes_maps: true,
};

/// An argument: a tensor map in 128 bytes, anything else little-endian in the first eight. Aligned as a map has to be.
#[repr(C, align(64))]
struct Value([u64; 16]);

impl Value {
    fn of(value: u64) -> Value {
        let mut words = [0; 16];
        words[0] = value;
        Value(words)
    }
}

/// See the module's documentation.
pub(super) struct PreparedLaunch {
    pub kernel: Arc<LoadedKernel>,
    pub grid: [u32; 3],
    pub arguments: Vec<ResolvedArgument>,
    /// The arguments as the driver takes them.
    values: Vec<Value>,
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
        gpu: &Gpu,
        kernels: &Kernels,
        launch: &ResolvedLaunch,
        origin: String,
        locate: impl Fn(ByteRange) -> (u64, usize),
    ) -> Result<PreparedLaunch> {
        launch.require("cuda", ABILITIES)?;
        let kernel = kernels.load(launch.kernel)?;
        let mut values = Vec::with_capacity(launch.arguments.len());
        for (index, argument) in launch.arguments.iter().enumerate() {
            let address = |range: ByteRange| {
                let (start, length) = locate(range);
                let end = range.offset.checked_add(range.bytes);
                if end.is_none_or(|end| end > length)
                    || !range.offset.is_multiple_of(range.element.size())
                {
                    return Err(Error::kernel(format!(
                        "kernel {} of {origin}, argument {index}: {} bytes of {} from byte {} on do not lie in an arena \
                         of {length} bytes",
                        kernel.entry, range.bytes, range.element, range.offset
                    )));
                }
                Ok(start + range.offset as u64)
            };
            values.push(match *argument {
                ResolvedArgument::Null => Value::of(0),
                // The driver reads as many bytes as the parameter has, from the front: on a little-endian machine the
                // low ones.
                ResolvedArgument::I32(value) => Value::of(u64::from(value as u32)),
                ResolvedArgument::I64(value) => Value::of(value as u64),
                ResolvedArgument::F32(value) => Value::of(u64::from(value.to_bits())),
                ResolvedArgument::ByteRange(range) => Value::of(address(range)?),
                ResolvedArgument::TensorMap(range, map) => {
                    encode(gpu, &map, address(range)?).map_err(|problem| {
                        Error::kernel(format!(
                            "kernel {} of {origin}, argument {index}: the driver does not encode {map} ({problem})",
                            kernel.entry
                        ))
                    })?
                }
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

/// A tensor map as kernels take it. What an arena holds does not move, so it is encoded once.
fn encode(gpu: &Gpu, map: &TensorMap, address: u64) -> Result<Value, Code> {
    let shape = map.shape();
    // CUtensorMapDataType and CUtensorMapSwizzle of the driver's documentation.
    let element = match map.element() {
        DType::F32 => 7,
        DType::Bf16 => 9,
        DType::I32 => 3,
    };
    let swizzle = match shape.swizzle {
        Swizzle::None => 0,
        Swizzle::Span32 => 1,
        Swizzle::Span64 => 2,
        Swizzle::Span128 => 3,
    };
    const NO_INTERLEAVE: u32 = 0;
    // Boxes are read by neighbouring blocks at about the same time.
    const PROMOTED_TO_128_BYTES: u32 = 2;
    const ZEROS_OUTSIDE: u32 = 0;
    let element_strides = [1; MAX_DIMS];
    let mut value = Value::of(0);
    // SAFETY: the map is written to 128 bytes aligned to 64; the lists have as many entries as the rank, strides one fewer, as
    // `TensorMap::new` holds; the address is of an arena that outlives the launch.
    unsafe {
        gpu.driver.tensor_map_encode_tiled(
            value.0.as_mut_ptr().cast(),
            element,
            shape.dims.len() as u32,
            address,
            shape.dims.as_ptr(),
            shape.strides.as_ptr(),
            shape.box_dims.as_ptr(),
            element_strides.as_ptr(),
            NO_INTERLEAVE,
            swizzle,
            PROMOTED_TO_128_BYTES,
            ZEROS_OUTSIDE,
        )
    }?;
    Ok(value)
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

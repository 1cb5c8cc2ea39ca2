//! A launch with every address in its place: checked once, started in every step.

use std::fmt;
use std::rc::Rc;

use cudarc::driver::DriverError;

use super::super::resolved::{ResolvedArgument, ResolvedLaunch, Stretch};
use super::gpu::{self, Gpu};
use super::kernels::LoadedKernel;
use keel_base::error::{Error, Result};

/// The most blocks of a grid in x, y, z.
const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// See the module's documentation.
pub(super) struct PreparedLaunch {
    pub kernel: Rc<LoadedKernel>,
    pub grid: [u32; 3],
    pub arguments: Vec<ResolvedArgument>,
    /// The arguments as the driver takes them: little-endian in eight bytes.
    pub values: Vec<u64>,
    /// The op it belongs to and where that stands.
    origin: String,
}

impl PreparedLaunch {
    /// Checks a launch against its kernel and the memory it refers to. `locate` gives a stretch's arena: its address and
    /// its length in bytes.
    ///
    /// # Errors
    /// [`Error::Kernel`] on the wrong number, order or type of arguments, a stretch that does not lie in its arena, and a
    /// grid no chip takes; with the kernel's name and both values.
    pub fn new(
        kernel: Rc<LoadedKernel>,
        launch: &ResolvedLaunch,
        origin: String,
        locate: impl Fn(Stretch) -> (u64, usize),
    ) -> Result<PreparedLaunch> {
        let refuse = |problem: String| {
            Err(Error::kernel(format!(
                "kernel {} of {origin}: {problem}",
                kernel.name
            )))
        };
        let (want, got) = (kernel.parameters.len(), launch.arguments.len());
        if want != got {
            return refuse(format!(
                "it takes {want} arguments, but the launch passes {got}"
            ));
        }
        if launch
            .grid
            .iter()
            .zip(GRID_LIMITS)
            .any(|(blocks, most)| *blocks == 0 || *blocks > most)
        {
            let [x, y, z] = launch.grid;
            return refuse(format!(
                "the grid ({x},{y},{z}) must have 1..{} × 1..65535 × 1..65535 blocks; use a smaller batch",
                GRID_LIMITS[0]
            ));
        }
        let mut values = Vec::with_capacity(got);
        for (index, (argument, parameter)) in
            launch.arguments.iter().zip(&kernel.parameters).enumerate()
        {
            if !argument.fits(*parameter) {
                return refuse(format!(
                    "argument {index}: the entry point takes {parameter}, but the launch passes {argument}"
                ));
            }
            values.push(match *argument {
                ResolvedArgument::Null => 0,
                ResolvedArgument::I32(value) => u64::from(value as u32),
                ResolvedArgument::I64(value) => value as u64,
                ResolvedArgument::F32(value) => u64::from(value.to_bits()),
                ResolvedArgument::Stretch(stretch) => {
                    let (start, length) = locate(stretch);
                    let end = stretch.offset.checked_add(stretch.bytes);
                    if end.is_none_or(|end| end > length) || !stretch.offset.is_multiple_of(stretch.element.size()) {
                        return refuse(format!(
                            "argument {index}: {} bytes of {} from byte {} on do not lie in an arena of {length} bytes",
                            stretch.bytes, stretch.element, stretch.offset
                        ));
                    }
                    start + stretch.offset as u64
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
    pub fn enqueue(self: &Rc<Self>, gpu: &Gpu) -> Result<(), DriverError> {
        gpu.remember(self);
        // SAFETY: `new` checked number, types and sizes of the values against the entry point's own signature and every
        // pointer against its arena; the session owns the arenas and waits for the stream before they go.
        unsafe {
            gpu::launch(
                self.kernel.function,
                self.grid,
                self.kernel.threads,
                self.kernel.shared_bytes,
                &self.values,
                gpu.compute,
            )
        }
    }

    /// The stretches it may write: those behind pointers to what is not const.
    #[cfg(feature = "cust")]
    pub fn written(&self) -> impl Iterator<Item = Stretch> {
        use super::super::simt::Parameter;
        self.arguments
            .iter()
            .zip(&self.kernel.parameters)
            .filter_map(|pair| match pair {
                (
                    ResolvedArgument::Stretch(stretch),
                    Parameter::Pointer {
                        is_const: false, ..
                    },
                ) => Some(*stretch),
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
            self.kernel.name,
            self.origin,
            self.kernel.threads,
            self.kernel.shared_bytes,
            arguments.join(", ")
        )
    }
}
